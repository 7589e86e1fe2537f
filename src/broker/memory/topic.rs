//! The patterns of topic exchanges: words between dots, `*` for one word, `#` for any number of them.
//! <https://www.rabbitmq.com/tutorials/tutorial-five-rust#topic-exchange>

/// A binding key as a topic exchange reads it.
pub(super) struct Pattern(Vec<Token>);

#[derive(PartialEq)]
enum Token {
    Word(String),
    AnyWord,
    AnyWords,
}

/// The words of a routing key. The empty key has none, as in RabbitMQ, so that `*` does not match it.
pub(super) fn words(routing_key: &str) -> Vec<&str> {
    if routing_key.is_empty() {
        return Vec::new();
    }
    routing_key.split('.').collect()
}

impl Pattern {
    pub(super) fn parse(binding_key: &str) -> Self {
        let token = |word: &str| match word {
            "*" => Token::AnyWord,
            "#" => Token::AnyWords,
            word => Token::Word(word.to_owned()),
        };
        Self(words(binding_key).into_iter().map(token).collect())
    }

    /// Walks both sides once and goes back to the latest `#` only, letting it take one word more: no pattern takes
    /// longer than words times tokens, however many `#` a client puts into it.
    pub(super) fn matches(&self, words: &[&str]) -> bool {
        let (mut token, mut word) = (0, 0);
        let mut latest_hash = None;
        while word < words.len() {
            match self.0.get(token) {
                Some(Token::AnyWords) => {
                    latest_hash = Some((token, word));
                    token += 1;
                }
                Some(expected) if expected.matches(words[word]) => {
                    token += 1;
                    word += 1;
                }
                _ => {
                    let Some((hash, taken)) = latest_hash else {
                        return false;
                    };
                    latest_hash = Some((hash, taken + 1));
                    (token, word) = (hash + 1, taken + 1);
                }
            }
        }
        self.0[token..].iter().all(|rest| *rest == Token::AnyWords)
    }
}

impl Token {
    fn matches(&self, word: &str) -> bool {
        match self {
            Self::Word(expected) => expected == word,
            Self::AnyWord | Self::AnyWords => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, key: &str) -> bool {
        Pattern::parse(pattern).matches(&words(key))
    }

    /// The law that [`Pattern::matches`] must agree with, in its plainest and slowest form.
    fn law(tokens: &[Token], words: &[&str]) -> bool {
        match (tokens, words) {
            ([], []) => true,
            ([Token::AnyWords, rest @ ..], _) => {
                law(rest, words) || !words.is_empty() && law(tokens, &words[1..])
            }
            ([token, rest @ ..], [word, further @ ..]) => token.matches(word) && law(rest, further),
            _ => false,
        }
    }

    /// All texts of up to `length` words, joined by dots.
    fn every(alphabet: &[&str], length: usize) -> Vec<String> {
        let mut all = vec![String::new()];
        let mut longest: Vec<String> = alphabet.iter().map(ToString::to_string).collect();
        for _ in 0..length {
            all.extend(longest.iter().cloned());
            let longer = longest
                .iter()
                .flat_map(|key| alphabet.iter().map(move |word| format!("{key}.{word}")));
            longest = longer.collect();
        }
        all
    }

    #[test]
    fn every_short_pattern_matches_the_short_keys_that_the_law_says() {
        let keys = every(&["a", "b"], 4);
        for pattern in every(&["a", "*", "#"], 4) {
            let parsed = Pattern::parse(&pattern);
            for key in &keys {
                let words = words(key);
                let expected = law(&parsed.0, &words);
                assert_eq!(parsed.matches(&words), expected, "{pattern} on {key}");
            }
        }
    }

    #[test]
    fn a_star_is_exactly_one_word() {
        assert!(matches("order.*.created", "order.eu.created"));
        assert!(!matches("order.*", "order"));
        assert!(!matches("order.*", "order.eu.created"));
        assert!(!matches("*", ""));
    }

    #[test]
    fn a_hash_is_any_number_of_words() {
        assert!(matches("#", ""));
        assert!(matches("order.#", "order"));
        assert!(matches("#.created", "order.eu.created"));
        assert!(!matches("order.#.created", "order.eu"));
    }

    #[test]
    fn wildcards_inside_a_word_are_letters() {
        assert!(!matches("ord*", "order"));
        assert!(matches("ord*", "ord*"));
    }
}
