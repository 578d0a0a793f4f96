//! Where a request may carry a token: `Authorization` (RFC 6750), the list of subprotocols, the query or a cookie (RFC 6265).
//! Pure; finds it and does not look into it.

use std::fmt;

use hyper::header::{self, HeaderMap};

use crate::config::AuthSettings;

/// The subprotocol after which the token stands: all that a browser can send with a WebSocket.
pub const SUBPROTOCOL: &str = "bearer";

/// A token that a request carries.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Offered<'a> {
    /// The token.
    pub token: &'a str,
    /// Whether it came as a cookie: a browser adds that for whatever page asks, so the page has to be known.
    pub by_cookie: bool,
}

/// Without the token itself.
impl fmt::Debug for Offered<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Offered").field("by_cookie", &self.by_cookie).finish_non_exhaustive()
    }
}

/// What is meant to be a token and cannot be one: no text, nothing in it, or two in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAToken;

/// The token of a request, if it has one. `Authorization` is looked at first, then the subprotocols, the query, the cookies: the
/// first place where there is something decides.
///
/// # Errors
/// There is something, and it cannot be a token.
pub fn find<'a>(
    headers: &'a HeaderMap,
    query: Option<&'a str>,
    settings: &AuthSettings,
) -> Result<Option<Offered<'a>>, NotAToken> {
    let bare = |token| Offered { token, by_cookie: false };
    if let Some(token) = authorization(headers)? {
        return Ok(Some(bare(token)));
    }
    if let Some(token) = subprotocol(headers)? {
        return Ok(Some(bare(token)));
    }
    if settings.query
        && let Some(token) = once(parameters(query).filter_map(|pair| pair.strip_prefix("token=")))?
    {
        return Ok(Some(bare(token)));
    }
    let Some(name) = &settings.cookie else { return Ok(None) };
    let token = once(cookies(headers).filter_map(|(key, value)| (key == name).then_some(value)))?;
    Ok(token.map(|token| Offered { token, by_cookie: true }))
}

/// `Authorization: Bearer TOKEN`.
///
/// # Errors
/// Another scheme, nothing behind it, or two such headers.
pub fn authorization(headers: &HeaderMap) -> Result<Option<&str>, NotAToken> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(NotAToken);
    }
    let (scheme, token) = value.to_str().map_err(|_| NotAToken)?.split_once(' ').ok_or(NotAToken)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(NotAToken);
    }
    sound(token.trim_ascii()).map(Some)
}

fn subprotocol(headers: &HeaderMap) -> Result<Option<&str>, NotAToken> {
    let lists = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    let mut names = lists.flat_map(|list| list.to_str().unwrap_or_default().split(',')).map(str::trim_ascii);
    if !names.any(|name| name == SUBPROTOCOL) {
        return Ok(None);
    }
    let token = sound(names.next().ok_or(NotAToken)?)?;
    if names.any(|name| name == SUBPROTOCOL) { Err(NotAToken) } else { Ok(Some(token)) }
}

fn parameters(query: Option<&str>) -> impl Iterator<Item = &str> {
    query.unwrap_or_default().split('&')
}

/// RFC 6265 section 4.2.1, read leniently: names with their values, which may stand in quotes.
fn cookies(headers: &HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(';')).filter_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        let value = value.trim_ascii();
        let bare = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
        Some((name.trim_ascii(), bare.unwrap_or(value)))
    })
}

/// The only one, if there is any. Of two nobody can tell which was meant, or who has added the other.
fn once<'a>(mut found: impl Iterator<Item = &'a str>) -> Result<Option<&'a str>, NotAToken> {
    let Some(token) = found.next() else { return Ok(None) };
    if found.next().is_some() { Err(NotAToken) } else { sound(token).map(Some) }
}

/// The text, if it has only characters that a token can have (RFC 6750 section 2.1).
///
/// # Errors
/// It has others, or none at all.
pub fn sound(token: &str) -> Result<&str, NotAToken> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    if token.is_empty() || !token.bytes().all(allowed) { Err(NotAToken) } else { Ok(token) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::{HeaderName, HeaderValue};

    fn look(lines: &[(HeaderName, &str)], query: Option<&str>, settings: &AuthSettings) -> String {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name, HeaderValue::from_bytes(value.as_bytes()).expect("a header"));
        }
        match find(&headers, query, settings) {
            Ok(None) => "none".into(),
            Ok(Some(Offered { token, by_cookie })) => {
                format!("{token}{}", if by_cookie { " by cookie" } else { "" })
            }
            Err(NotAToken) => "not a token".into(),
        }
    }

    type Row<'a> = (&'a [(HeaderName, &'a str)], Option<&'a str>, &'a AuthSettings, &'a str);

    #[test]
    fn tokens_are_found_where_they_may_stand() {
        use header::{AUTHORIZATION as A, COOKIE as C, SEC_WEBSOCKET_PROTOCOL as P};
        let (off, on) = (
            AuthSettings::default(),
            AuthSettings { cookie: Some("tw".into()), query: true, ..AuthSettings::default() },
        );
        let rows: &[Row<'_>] = &[
            (&[], None, &on, "none"),
            (&[(A, "Bearer a.b.c")], None, &off, "a.b.c"),
            (&[(A, "bearer  a.b.c ")], None, &off, "a.b.c"),
            (&[(A, "Bearer ")], None, &off, "not a token"),
            (&[(A, "Bearer")], None, &off, "not a token"),
            (&[(A, "")], None, &off, "not a token"),
            (&[(A, "Basic YTpi")], None, &off, "not a token"),
            (&[(A, "garbage")], None, &off, "not a token"),
            (&[(A, "Bearer a b")], None, &off, "not a token"),
            (&[(A, "Bearer \u{e9}")], None, &off, "not a token"),
            (&[(A, "Bearer a"), (A, "Bearer a")], None, &off, "not a token"),
            (&[(P, "tidewire.v1, bearer, a.b.c")], None, &off, "a.b.c"),
            (&[(P, "tidewire.v1,bearer"), (P, "a.b.c")], None, &off, "a.b.c"),
            (&[(P, "bearer")], None, &off, "not a token"),
            (&[(P, "bearer, ")], None, &off, "not a token"),
            (&[(P, "bearer, a, bearer, b")], None, &off, "not a token"),
            (&[(P, "Bearer, a")], None, &off, "none"),
            (&[(P, "tidewire.v1")], None, &off, "none"),
            (&[], Some("token=a.b.c"), &off, "none"),
            (&[], Some("user=x&token=a.b.c"), &on, "a.b.c"),
            (&[], Some("token="), &on, "not a token"),
            (&[], Some("token=a&token=b"), &on, "not a token"),
            (&[], Some("tokens=a"), &on, "none"),
            (&[(C, "tw=a.b.c")], None, &off, "none"),
            (&[(C, "x=1; tw=a.b.c")], None, &on, "a.b.c by cookie"),
            (&[(C, "tw=\"a.b.c\"")], None, &on, "a.b.c by cookie"),
            (&[(C, "xtw=a; TW=b; tw")], None, &on, "none"),
            (&[(C, "tw=a; tw=b")], None, &on, "not a token"),
            (&[(C, "tw=")], None, &on, "not a token"),
            (&[(A, "Bearer a"), (P, "bearer, b"), (C, "tw=c")], Some("token=d"), &on, "a"),
            (&[(P, "bearer, b"), (C, "tw=c")], Some("token=d"), &on, "b"),
            (&[(C, "tw=c")], Some("token=d"), &on, "d"),
            (&[(A, "Bearer "), (C, "tw=c")], None, &on, "not a token"),
        ];
        for (lines, query, settings, expected) in rows {
            assert_eq!(look(lines, *query, settings), *expected, "{lines:?} {query:?}");
        }
    }
}
