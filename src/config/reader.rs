//! Where settings come from, first to last: flags, the environment, `NAME_FILE` for secrets, the configuration file, defaults.

use std::{collections::BTreeMap, fmt, fs, str::FromStr, time::Duration};

use super::settings::{SETTINGS, Setting};
use crate::url::without_secrets;

/// Everything that is wrong with the configuration.
#[derive(Debug, Default)]
pub struct Problems(Vec<String>);

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration is not usable:")?;
        self.0
            .iter()
            .try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

/// Reads settings and collects what is wrong with them.
#[derive(Debug)]
pub struct Reader {
    values: BTreeMap<&'static str, Value>,
    problems: Problems,
}

/// A value and where it is from.
#[derive(Clone, Debug)]
struct Value {
    text: String,
    from: String,
}

impl Reader {
    /// `flags` and `environment` look names up; the configuration file is the one that `COURTIER_CONFIG` names.
    pub fn new(
        flags: impl Fn(&str) -> Option<String>,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Self {
        let mut problems = Problems::default();
        let path = environment("COURTIER_CONFIG").filter(|path| !path.is_empty());
        let file = path.as_deref().map_or_else(BTreeMap::new, |path| {
            read_file(path).unwrap_or_else(|problem| {
                problems
                    .0
                    .push(format!("COURTIER_CONFIG: {path}: {problem}"));
                BTreeMap::new()
            })
        });
        let mut values = BTreeMap::new();
        for setting in SETTINGS {
            let name = setting.name;
            let named = |from: String| move |text| Value { text, from };
            let mut value = flags(name)
                .map(named(flag(setting)))
                .or_else(|| environment(name).map(named(name.to_owned())));
            if value.is_none() && setting.secret {
                value = secret_file(name, &environment, &mut problems);
            }
            let in_file = file.get(&name.to_lowercase()).cloned();
            let from_file = format!("{name} in {}", path.as_deref().unwrap_or_default());
            // An empty variable is as good as none: compose files leave them so.
            let value = value
                .filter(|value| !value.text.is_empty())
                .or_else(|| in_file.map(named(from_file)));
            if let Some(value) = value {
                values.insert(name, value);
            }
        }
        Self { values, problems }
    }

    /// For tests: these values and no others.
    pub fn fixed(values: &[(&str, &str)]) -> Self {
        let find = |name: &str| {
            let found = values.iter().find(|(set, _)| *set == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Self::new(|_| None, find)
    }

    /// Ends reading.
    pub fn finish<T>(self, config: T) -> Result<T, Problems> {
        if self.problems.0.is_empty() {
            Ok(config)
        } else {
            Err(self.problems)
        }
    }

    /// Notes that the value of `name` cannot be used.
    pub fn problem(&mut self, name: &str, problem: &str) {
        let from = self.values.get(name).map(|value| value.from.clone());
        let from = from.unwrap_or_else(|| name.to_owned());
        self.problems.0.push(format!("{from}: {problem}"));
    }

    /// Whether it was set, by whatever means.
    pub fn is_set(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// The value, if it was set.
    pub fn optional(&self, name: &str) -> Option<String> {
        self.values.get(name).map(|value| value.text.clone())
    }

    /// The value or the default.
    pub fn text(&self, name: &str) -> String {
        let default = SETTINGS.iter().find(|setting| setting.name == name);
        let default = default.map(|setting| setting.default.to_owned());
        self.optional(name).or(default).unwrap_or_default()
    }

    /// The value, one of `allowed`.
    pub fn one_of(&mut self, name: &str, allowed: &[&str]) -> String {
        let text = self.text(name);
        if !allowed.contains(&text.as_str()) {
            let named: Vec<_> = allowed.iter().filter(|text| !text.is_empty()).collect();
            let text = quoted(name, &text);
            self.problem(name, &format!("{text} is none of {named:?}"));
        }
        text
    }

    /// The value as a number.
    pub fn number<T: FromStr + Default>(&mut self, name: &str) -> T {
        let text = self.text(name);
        self.parsed(name, &text, "a whole number within bounds", T::default())
    }

    /// A text as whatever it should be; `placeholder` stands for it until the problem is reported.
    pub fn parsed<T: FromStr>(
        &mut self,
        name: &str,
        text: &str,
        expected: &str,
        placeholder: T,
    ) -> T {
        text.trim().parse().unwrap_or_else(|_| {
            let text = quoted(name, text);
            self.problem(name, &format!("{text} is not {expected}"));
            placeholder
        })
    }

    /// The value as a time: plain numbers are milliseconds.
    pub fn duration(&mut self, name: &str) -> Duration {
        let text = self.text(name);
        self.time(name, &text)
    }

    /// The value as times, separated by commas.
    pub fn durations(&mut self, name: &str) -> Vec<Duration> {
        let texts = self.list(name);
        texts.iter().map(|text| self.time(name, text)).collect()
    }

    fn time(&mut self, name: &str, text: &str) -> Duration {
        match text.trim().parse() {
            Ok(ms) => Duration::from_millis(ms),
            Err(_) => humantime::parse_duration(text.trim()).unwrap_or_else(|_| {
                let expected = "is neither milliseconds nor a time such as 30s, 5m or 24h";
                let text = quoted(name, text);
                self.problem(name, &format!("{text} {expected}"));
                Duration::ZERO
            }),
        }
    }

    /// The value as a number of bytes: plain, or with KiB, MiB or GiB.
    pub fn bytes(&mut self, name: &str) -> usize {
        let text = self.text(name);
        let units = [("KiB", 10), ("MiB", 20), ("GiB", 30)];
        let found = units
            .iter()
            .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)));
        let (digits, shift) = found.unwrap_or((&text, 0));
        let bytes = digits.trim().parse::<usize>().ok();
        bytes
            .and_then(|bytes| bytes.checked_mul(1 << shift))
            .unwrap_or_else(|| {
                let expected = "is not a number of bytes, such as 4194304 or 4MiB";
                let text = quoted(name, &text);
                self.problem(name, &format!("{text} {expected}"));
                0
            })
    }

    /// The value as a list, separated by commas.
    pub fn list(&self, name: &str) -> Vec<String> {
        let text = self.text(name);
        let entries = text.split(',').map(str::trim);
        entries
            .filter(|entry| !entry.is_empty())
            .map(str::to_owned)
            .collect()
    }

    /// The content of the file that the value names, if it is set.
    pub fn file(&mut self, name: &str) -> Option<String> {
        let path = self.optional(name)?;
        match fs::read_to_string(&path) {
            Ok(content) => Some(content),
            Err(error) => {
                let path = shown(name, &path);
                self.problem(name, &format!("cannot read {path}: {error}"));
                None
            }
        }
    }

    /// Every setting with its value in force, secrets hidden, and where it is from.
    pub fn print(&self) -> Vec<(&'static Setting, String, String)> {
        let shown = |setting: &'static Setting| {
            let value = self.values.get(setting.name);
            let from = value.map_or("default", |value| &value.from).to_owned();
            let text = match value {
                Some(_) if setting.secret => "(hidden)".to_owned(),
                Some(value) => shown(setting.name, &value.text),
                None => setting.default.to_owned(),
            };
            (setting, text, from)
        };
        SETTINGS.iter().map(shown).collect()
    }
}

/// A value as people are shown it: a URL may hold a password although the setting is no secret.
fn shown(name: &str, text: &str) -> String {
    // OpenTelemetry's may be written without `http://`.
    if text.contains("://") || name.ends_with("_ENDPOINT") {
        without_secrets(text)
    } else {
        text.to_owned()
    }
}

/// A value in a sentence that says what is wrong with it.
fn quoted(name: &str, text: &str) -> String {
    let is_secret = SETTINGS
        .iter()
        .any(|setting| setting.name == name && setting.secret);
    match is_secret {
        true => "its value".to_owned(),
        false => format!("{:?}", shown(name, text)),
    }
}

/// The flag of a setting.
pub fn flag(setting: &Setting) -> String {
    format!("--{}", setting.name.to_lowercase().replace('_', "-"))
}

fn secret_file(
    name: &str,
    environment: &impl Fn(&str) -> Option<String>,
    problems: &mut Problems,
) -> Option<Value> {
    let from = format!("{name}_FILE");
    let path = environment(&from).filter(|path| !path.is_empty())?;
    match fs::read_to_string(&path) {
        // Files of secrets end with a line break more often than secrets do.
        Ok(text) => Some(Value {
            text: text.trim_end_matches(['\r', '\n']).to_owned(),
            from,
        }),
        Err(error) => {
            // Without the path: the secret itself may have been put there.
            problems.0.push(format!(
                "{from}: cannot read the file that it names: {error}"
            ));
            None
        }
    }
}

/// Where a file cannot be read, and why. The line itself may hold a password.
fn unreadable(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start));
    let line = before.unwrap_or_default().matches('\n').count() + 1;
    format!("line {line}: {}", error.message())
}

/// A flat TOML file; its keys are the settings' names in lower case.
fn read_file(path: &str) -> Result<BTreeMap<String, String>, String> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    let table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| unreadable(&text, &error))?;
    let known = |key: &str| SETTINGS.iter().any(|s| s.name.to_lowercase() == key);
    let entries = table.into_iter().map(|(key, value)| {
        if !known(&key) {
            return Err(format!("{key:?} is not a setting"));
        }
        let text = match value {
            toml::Value::String(text) => text,
            toml::Value::Integer(_) | toml::Value::Boolean(_) => value.to_string(),
            _ => return Err(format!("{key:?} must be a text or a number")),
        };
        Ok((key, text))
    });
    entries.collect()
}
