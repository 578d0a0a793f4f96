//! Where a broker is: `SCHEME://[USER[:PASSWORD]@]HOST[:PORT][,HOST[:PORT]..][/DATABASE]`. Pure. Never shows a password.

use std::fmt;

use super::Kind;
use crate::config::Secret;

/// Servers that one URL may name.
const HOSTS_MAX: usize = 16;

/// The parts of a URL.
#[derive(Clone)]
pub struct Url {
    /// What the scheme names.
    pub kind: &'static Kind,
    /// Whether TLS is spoken.
    pub tls: bool,
    /// Who connects.
    pub user: Option<String>,
    /// With what; a file may say it instead.
    pub password: Option<Secret>,
    /// Servers, one of which is asked at each attempt; an IPv6 address without its brackets.
    pub hosts: Vec<(String, u16)>,
    /// The database, for brokers that number theirs.
    pub database: u32,
}

/// Why a URL was refused. Never repeats it: a password may be in it, at the wrong place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// No scheme, or an unknown one.
    #[error(
        "does not begin with a scheme that is known: give SCHEME://HOST[:PORT] with one of {}",
        Kind::schemes()
    )]
    Scheme,
    /// `%` without two hexadecimal digits behind it, or no UTF-8.
    #[error(
        "has a user or password that cannot be read: write other characters than letters and digits as %XX"
    )]
    Credentials,
    /// No host, a port out of range, a character that no name holds, or too many.
    #[error(
        "has no host that can be read: give HOST or HOST:PORT, at most {HOSTS_MAX} of them joined by commas"
    )]
    Host,
    /// A path that is no number, or for a broker without numbered databases.
    #[error(
        "has a path that is no database: leave it out, or give the number of one, such as /0 (Redis only)"
    )]
    Path,
    /// `?` or `#`.
    #[error(
        "has a query or a fragment, which no broker knows: what can be set are settings of their own (broker.*)"
    )]
    Query,
}

impl Url {
    /// Reads a URL.
    ///
    /// # Errors
    /// Says what is wrong with it, without repeating any of it.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let (scheme, rest) = text.trim().split_once("://").ok_or(UrlError::Scheme)?;
        let scheme = scheme.to_ascii_lowercase();
        let named = |kind: &&Kind| kind.scheme == scheme || kind.scheme_tls == scheme;
        let kind = Kind::ALL.iter().find(named).ok_or(UrlError::Scheme)?;
        let tls = kind.scheme_tls == scheme;
        if rest.contains(['?', '#']) {
            return Err(UrlError::Query);
        }
        // A password that was not escaped may have a slash or an at sign in it.
        let (credentials, rest) = match rest.rsplit_once('@') {
            Some((credentials, rest)) => (Some(credentials), rest),
            None => (None, rest),
        };
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (mut user, mut password) = (None, None);
        if let Some(credentials) = credentials {
            let (name, secret) = match credentials.split_once(':') {
                Some((name, secret)) => (name, Some(secret)),
                None => (credentials, None),
            };
            user = Some(unescaped(name)?).filter(|name| !name.is_empty());
            password = match secret {
                Some(secret) => Some(Secret::from(&*unescaped(secret)?)),
                None => None,
            };
        }
        let hosts = hosts.split(',').map(|one| host(one, kind.port)).collect::<Option<Vec<_>>>();
        let hosts = hosts.filter(|hosts| hosts.len() <= HOSTS_MAX).ok_or(UrlError::Host)?;
        let database = match path {
            "" => 0,
            number if kind.scheme.starts_with("redis") => number.parse().map_err(|_| UrlError::Path)?,
            _ => return Err(UrlError::Path),
        };
        Ok(Self { kind, tls, user, password, hosts, database })
    }
}

/// As people may see it: without the password.
impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", if self.tls { self.kind.scheme_tls } else { self.kind.scheme })?;
        for (position, (host, port)) in self.hosts.iter().enumerate() {
            let comma = if position == 0 { "" } else { "," };
            if host.contains(':') {
                write!(f, "{comma}[{host}]:{port}")?;
            } else {
                write!(f, "{comma}{host}:{port}")?;
            }
        }
        if self.database == 0 { Ok(()) } else { write!(f, "/{}", self.database) }
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

fn host(text: &str, usual_port: u16) -> Option<(String, u16)> {
    let (name, port) = match text.strip_prefix('[') {
        Some(bracketed) => {
            let (name, rest) = bracketed.split_once(']')?;
            name.parse::<std::net::Ipv6Addr>().ok()?;
            (name, if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) })
        }
        None => match text.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (text, None),
        },
    };
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':');
    let port = match port {
        None => usual_port,
        Some(port) => port.parse().ok().filter(|port| *port != 0)?,
    };
    (!name.is_empty() && name.bytes().all(sound)).then(|| (name.to_owned(), port))
}

/// RFC 3986 section 2.1.
fn unescaped(text: &str) -> Result<String, UrlError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let (Some(high), Some(low)) = (digit(), digit()) else { return Err(UrlError::Credentials) };
        bytes.push(u8::try_from(high * 16 + low).map_err(|_| UrlError::Credentials)?);
    }
    String::from_utf8(bytes).map_err(|_| UrlError::Credentials)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_shown_without_their_password() {
        let rows = [
            ("redis://127.0.0.1", "redis://127.0.0.1:6379"),
            ("REDISS://:s3cret@h:1/7", "rediss://h:1/7"),
            ("redis-streams://u:s3cret@[::1]:7,b", "redis-streams://[::1]:7,b:6379"),
            ("nats://a,b:4223", "nats://a:4222,b:4223"),
            ("nats+tls://u:p%40s3cret@a/", "nats+tls://a:4222"),
            ("jetstream://u@a", "jetstream://a:4222"),
            (" jetstream+tls://a.example ", "jetstream+tls://a.example:4222"),
        ];
        for (text, shown) in rows {
            let url = Url::parse(text).unwrap_or_else(|error| panic!("{text} {error}"));
            assert_eq!(url.to_string(), shown);
            assert_eq!(format!("{url:?}"), shown);
        }
        let url = Url::parse("redis://u%3A:p%40%2F@h").expect("a URL");
        assert_eq!(url.user.as_deref(), Some("u:"));
        assert_eq!(url.password.expect("one").expose(), "p@/");
        // Not escaped, and clear all the same.
        let url = Url::parse("redis://u:p@/:@h/1").expect("a URL");
        assert_eq!(url.password.expect("one").expose(), "p@/:");
    }

    #[test]
    fn what_cannot_be_read_is_refused_without_being_repeated() {
        let rows = [
            ("127.0.0.1:6379", UrlError::Scheme),
            ("kafka://s3cret", UrlError::Scheme),
            ("redis://s3cret%zz@h", UrlError::Credentials),
            ("redis://u:s3cret%ff@h", UrlError::Credentials),
            ("redis://", UrlError::Host),
            ("redis://h:s3cret", UrlError::Host),
            ("redis://h:0", UrlError::Host),
            ("redis://a,,b", UrlError::Host),
            ("redis://[::1", UrlError::Host),
            ("redis://a b", UrlError::Host),
            ("redis://h/s3cret", UrlError::Path),
            ("nats://h/1", UrlError::Path),
            ("nats://h?tls=true", UrlError::Query),
        ];
        for (text, expected) in rows {
            let error = Url::parse(text).expect_err(text);
            assert_eq!(error, expected, "{text}");
            assert!(!error.to_string().contains("s3cret"), "{error}");
        }
        let many = format!("nats://{}", vec!["a"; HOSTS_MAX + 1].join(","));
        assert_eq!(Url::parse(&many).expect_err("too many"), UrlError::Host);
    }
}
