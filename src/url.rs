//! URLs as settings hold them. Most may hold a password, so what is wrong with one is said without it.

use reqwest::Url;

/// Why a URL cannot be used. Nothing of it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadUrl {
    #[error("must begin with {0}")]
    Scheme(&'static str),
    #[error(
        "has a port that is not a number from 1 to 65535, or a password that is not escaped: in it / is %2F, # %23, ? %3F, @ %40"
    )]
    Port,
    #[error("names no host")]
    Host,
    #[error("has an @ or a # after its host: in a user or password / is %2F, # %23, ? %3F, @ %40")]
    Escapes,
    #[error("is not a URL such as {0}host")]
    Malformed(&'static str),
}

/// Reads the URL of a server that people log in to. `schemes`: how it may begin, for people as well: `"amqp:// or amqps://"`.
pub fn of_server(text: &str, schemes: &'static str) -> Result<Url, BadUrl> {
    let url = of_place(text, schemes)?;
    // Of a password with a / or ? in it, what comes before would pass for a host, and the rest for a path.
    let after = [Some(url.path()), url.query(), url.fragment()];
    if url.fragment().is_some() || after.into_iter().flatten().any(|part| part.contains('@')) {
        return Err(BadUrl::Escapes);
    }
    Ok(url)
}

/// Reads a URL whose path may be anything.
pub fn of_place(text: &str, schemes: &'static str) -> Result<Url, BadUrl> {
    let lower = text.to_ascii_lowercase();
    let mut known = schemes.split(' ').filter(|word| word.contains("://"));
    let Some(scheme) = known.find(|scheme| lower.starts_with(scheme)) else {
        return Err(BadUrl::Scheme(schemes));
    };
    let url = Url::parse(text).map_err(|_| match has_bad_port(text) {
        true => BadUrl::Port,
        false => BadUrl::Malformed(scheme),
    })?;
    if url.port() == Some(0) {
        return Err(BadUrl::Port);
    }
    // A database may be reached by a socket, which the query names.
    if url.host_str().unwrap_or_default().is_empty() && url.query().is_none() {
        return Err(BadUrl::Host);
    }
    Ok(url)
}

/// Whether what is wrong with a URL is what stands where its port should.
fn has_bad_port(text: &str) -> bool {
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    let port = match host.rsplit_once(']') {
        Some((_, after)) => after.strip_prefix(':'),
        None => host.split_once(':').map(|(_, port)| port),
    };
    port.is_some_and(|port| !port.is_empty() && port.parse::<u16>().is_err())
}

/// A text that may be a URL, without its password and its query: for logs and people.
pub fn without_secrets(text: &str) -> String {
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), text),
    };
    let (user, rest) = match rest.rsplit_once('@') {
        Some((user, rest)) => match user.split_once(':') {
            Some((user, _)) => (format!("{user}:(hidden)@"), rest),
            None => ("(hidden)@".to_owned(), rest),
        },
        None => (String::new(), rest),
    };
    let rest = match rest.split_once('?') {
        Some((rest, _)) => format!("{rest}?(hidden)"),
        None => rest.to_owned(),
    };
    format!("{scheme}{user}{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATABASES: &str = "mysql:// or postgres://";

    #[test]
    fn urls_that_can_be_used_are_read() {
        for text in [
            "mysql://u:p@h:3306/db",
            "MySQL://u@h/db",
            "postgres://u:p%2Fw%40@[::1]:5432/db?sslmode=require",
            "postgres://u:p@w@h/db",
            "postgres:///db?host=/var/run/postgresql",
            "postgres://%2Fvar%2Frun/db",
            "mysql://u:p%23w@h",
        ] {
            assert!(of_server(text, DATABASES).is_ok(), "{text}");
        }
        assert!(of_place("https://h/a@b#c", "https://").is_ok());
    }

    #[test]
    fn what_is_wrong_is_said_without_what_is_secret() {
        for (text, problem) in [
            ("redis://u:secret@h", BadUrl::Scheme(DATABASES)),
            ("u:secret@h", BadUrl::Scheme(DATABASES)),
            ("", BadUrl::Scheme(DATABASES)),
            ("mysql:u:secret@h", BadUrl::Scheme(DATABASES)),
            ("mysql://u:secret/w@h/db", BadUrl::Port),
            ("mysql://u:secret#w@h/db", BadUrl::Port),
            ("mysql://u:secret?w@h/db", BadUrl::Port),
            ("mysql://u:secret@h:99999/db", BadUrl::Port),
            ("mysql://u:secret@h:port/db", BadUrl::Port),
            ("mysql://u:secret@h:0/db", BadUrl::Port),
            ("mysql://u:secret@[::1]:port/db", BadUrl::Port),
            ("mysql://u:12/secret@h/db", BadUrl::Escapes),
            ("mysql://u:12?secret@h/db", BadUrl::Escapes),
            ("mysql://u:12#secret@h/db", BadUrl::Escapes),
            ("mysql://u:secret@h/db#", BadUrl::Escapes),
            ("mysql:///db", BadUrl::Host),
            ("mysql://u:secret@", BadUrl::Malformed("mysql://")),
            ("mysql://u:secret@[h/db", BadUrl::Malformed("mysql://")),
        ] {
            let refused = of_server(text, DATABASES);
            assert_eq!(refused, Err(problem), "{text}");
            assert!(!problem.to_string().contains("secret"));
        }
    }

    #[test]
    fn a_url_is_shown_without_its_password() {
        for (text, shown) in [
            ("http://otel:4317", "http://otel:4317"),
            (
                "http://u:secret@otel:4317/x",
                "http://u:(hidden)@otel:4317/x",
            ),
            ("http://u:sec/ret@otel", "http://u:(hidden)@otel"),
            ("u:secret@otel:4317", "u:(hidden)@otel:4317"),
            ("http://secret@otel", "http://(hidden)@otel"),
            ("http://otel/?token=secret", "http://otel/?(hidden)"),
            ("otel:4317", "otel:4317"),
        ] {
            assert_eq!(without_secrets(text), shown);
        }
    }
}
