//! Page tokens: where the next page of a list begins, and of which list, opaque to clients.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::failed_message::fingerprint::digest;

/// Rows of a page when the caller says nothing, and at most.
pub const DEFAULT_SIZE: u32 = 50;
pub const MAX_SIZE: u32 = 1_000;

#[derive(Serialize, Deserialize)]
struct Token<C> {
    cursor: C,
    /// What the list is of.
    list: String,
}

/// A part of a list, and the token for the next part; empty at the end.
#[derive(Clone, Debug)]
pub struct Listed<T> {
    pub rows: Vec<T>,
    pub next: String,
    /// Ids of what is left out, because it cannot be read.
    pub unreadable: Vec<String>,
}

/// The token is none, or one of another list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadToken;

/// What a list is of: its kind and its filter. Tokens of other lists are refused.
pub fn list(kind: &str, filter: &impl Serialize) -> String {
    let filter = serde_json::to_string(filter).unwrap_or_default();
    digest(&[kind, &filter])
}

/// The token for what comes after `cursor`; empty at the end.
pub fn token<C: Serialize>(cursor: Option<C>, list: &str) -> String {
    let Some(cursor) = cursor else {
        return String::new();
    };
    let token = Token {
        cursor,
        list: list.to_owned(),
    };
    URL_SAFE_NO_PAD.encode(rmp_serde::to_vec(&token).unwrap_or_default())
}

/// Where the page of a token begins; `None`: at the beginning.
pub fn cursor<C: DeserializeOwned>(token: &str, list: &str) -> Result<Option<C>, BadToken> {
    if token.is_empty() {
        return Ok(None);
    }
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| BadToken)?;
    let token: Token<C> = rmp_serde::from_slice(&bytes).map_err(|_| BadToken)?;
    if token.list == list {
        Ok(Some(token.cursor))
    } else {
        Err(BadToken)
    }
}

/// A page of what is all there, in the order of its keys, which are unique.
pub fn of<T, K: Ord + Serialize + DeserializeOwned>(
    mut all: Vec<T>,
    key: impl Fn(&T) -> K,
    size: u32,
    token: &str,
    list: &str,
) -> Result<Listed<T>, BadToken> {
    let after: Option<K> = cursor(token, list)?;
    all.retain(|one| after.as_ref().is_none_or(|after| key(one) > *after));
    all.sort_unstable_by_key(&key);
    let more = all.len() > size as usize;
    all.truncate(size as usize);
    let last = all.last().filter(|_| more).map(key);
    Ok(Listed {
        rows: all,
        next: self::token(last, list),
        unreadable: Vec::new(),
    })
}

/// The size of a page that a caller asks for. `None`: negative.
pub fn size(asked: i32) -> Option<u32> {
    match u32::try_from(asked).ok()? {
        0 => Some(DEFAULT_SIZE),
        size => Some(size.min(MAX_SIZE)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Cursor;

    #[test]
    fn pages_of_a_whole_list_have_everything_once() {
        let all = vec!["b", "d", "a", "c", "e"];
        let (mut token, mut seen) = (String::new(), Vec::new());
        loop {
            let key = |name: &&str| (*name).to_owned();
            let page = of(all.clone(), key, 2, &token, "list").expect("its own token");
            seen.extend(page.rows);
            token = page.next;
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(seen, ["a", "b", "c", "d", "e"]);
    }

    #[test]
    fn a_token_leads_on_in_its_own_list_only() {
        let cursor_at = Cursor {
            at: chrono::DateTime::from_timestamp_micros(1_700_000_000_123_456).expect("a time"),
            name: "n".into(),
        };
        let mine = list("kind", &"filter");
        let token = token(Some(cursor_at.clone()), &mine);
        assert_eq!(cursor(&token, &mine), Ok(Some(cursor_at)));
        assert_eq!(
            cursor::<Cursor>(&token, &list("kind", &"other")),
            Err(BadToken)
        );
        for bad in ["x", "AAAA", "é", &token[1..]] {
            assert_eq!(cursor::<Cursor>(bad, &mine), Err(BadToken), "{bad}");
        }
        assert_eq!(cursor::<Cursor>("", &mine), Ok(None));
    }
}
