//! Origins of web pages (<https://www.rfc-editor.org/rfc/rfc6454#section-6.2>), as CORS_ORIGINS lists them. What the configuration
//! accepts and what the server uses is read here, by the same function.

use http::HeaderValue;
use tower_http::csrf::CsrfLayer;

/// Not an origin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not an origin such as https://app.example.org: a scheme, a host, and a port where it is not the usual one"
)]
pub struct BadOrigin(String);

/// Whose pages may call.
#[derive(Debug)]
pub enum Origins {
    /// Everybody's.
    All,
    /// Those of these, as the headers say them, and what refuses all others.
    These(Vec<HeaderValue>, CsrfLayer),
}

impl Origins {
    pub fn read(origins: &[String]) -> Result<Self, BadOrigin> {
        // A star beside others lets everybody call as well.
        let others = || origins.iter().filter(|origin| *origin != "*");
        let mut headers = Vec::new();
        let mut layer = CsrfLayer::new();
        for origin in others() {
            let bad = || BadOrigin(crate::url::without_secrets(origin));
            headers.push(origin.parse().map_err(|_| bad())?);
            layer = layer.add_trusted_origin(origin).map_err(|_| bad())?;
        }
        Ok(match others().count() == origins.len() {
            true => Self::These(headers, layer),
            false => Self::All,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(origins: &[&str]) -> Result<Origins, BadOrigin> {
        let origins: Vec<_> = origins.iter().map(|text| (*text).to_owned()).collect();
        Origins::read(&origins)
    }

    #[test]
    fn a_scheme_and_a_host_are_an_origin() {
        let two = read(&["https://app.example.org", "http://127.0.0.1:8080"]);
        assert!(matches!(two, Ok(Origins::These(two, _)) if two.len() == 2));
        assert!(matches!(read(&[]), Ok(Origins::These(none, _)) if none.is_empty()));
        assert!(matches!(read(&["*"]), Ok(Origins::All)));
        for bad in [
            "127.0.0.1:8080",
            "app.example.org",
            "https://app.example.org/",
            "https://app.example.org/path",
            "https://",
        ] {
            assert!(read(&[bad]).is_err(), "{bad}");
            assert!(read(&["*", bad]).is_err(), "{bad}");
        }
        let bad = read(&["https://u:secret@h/x"])
            .map(drop)
            .expect_err("no origin");
        assert!(!bad.to_string().contains("secret"), "{bad}");
    }
}
