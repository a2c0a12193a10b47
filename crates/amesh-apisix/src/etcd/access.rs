//! Who may read: nobody is asked, or one user with a password.

use super::errors::EtcdError;
use http::HeaderMap;
use parking_lot::Mutex;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How long a token is given out; it holds for as long again. APISIX asks for a new one every few minutes.
const LIFE: Duration = Duration::from_secs(3600);

/// A user and the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The name.
    pub user: String,
    /// The password.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Asks for them.
pub(super) struct Access {
    pub(super) credentials: Option<Credentials>,
    tokens: Mutex<Tokens>,
}

struct Tokens {
    current: String,
    previous: Option<String>,
    since: Instant,
}

fn new_token() -> String {
    Uuid::new_v4().simple().to_string()
}

/// Whether they are equal, in a time that does not say where they differ.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |differs, (x, y)| differs | (x ^ y)) == 0
}

impl Access {
    pub(super) fn new(credentials: Option<Credentials>) -> Access {
        let tokens = Tokens { current: new_token(), previous: None, since: Instant::now() };
        Access { credentials, tokens: Mutex::new(tokens) }
    }

    /// A token for who knows the password.
    pub(super) fn authenticate(&self, user: &str, password: &str) -> Result<String, EtcdError> {
        let wanted = self.credentials.as_ref().ok_or(EtcdError::AuthNotEnabled)?;
        if !(same(&wanted.user, user) & same(&wanted.password, password)) {
            return Err(EtcdError::AuthFailed);
        }
        let mut tokens = self.tokens.lock();
        tokens.turn(Instant::now());
        Ok(tokens.current.clone())
    }

    /// Whether these headers hold a token that counts: etcd's clients call it `token`, its gateway `authorization`.
    pub(super) fn check(&self, headers: &HeaderMap) -> Result<(), EtcdError> {
        if self.credentials.is_none() {
            return Ok(());
        }
        let given = headers.get("token").or_else(|| headers.get(http::header::AUTHORIZATION));
        let given = given.and_then(|h| h.to_str().ok()).ok_or(EtcdError::UserEmpty)?;
        let mut tokens = self.tokens.lock();
        tokens.turn(Instant::now());
        let holds = same(&tokens.current, given) || tokens.previous.as_deref().is_some_and(|p| same(p, given));
        holds.then_some(()).ok_or(EtcdError::InvalidAuthToken)
    }
}

impl Tokens {
    fn turn(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.since);
        if age < LIFE {
            return;
        }
        let last = std::mem::replace(&mut self.current, new_token());
        self.previous = (age < 2 * LIFE).then_some(last);
        self.since = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(http::HeaderName::from_static(name), value.parse().unwrap())])
    }

    #[test]
    fn a_token_holds_for_one_to_two_lives() {
        let access = Access::new(Some(Credentials { user: "u".into(), password: "p".into() }));
        assert_eq!(access.authenticate("u", "q"), Err(EtcdError::AuthFailed));
        assert_eq!(access.authenticate("", "p"), Err(EtcdError::AuthFailed));
        let token = access.authenticate("u", "p").unwrap();
        assert_eq!(access.check(&HeaderMap::new()), Err(EtcdError::UserEmpty));
        assert_eq!(access.check(&headers("authorization", "x")), Err(EtcdError::InvalidAuthToken));
        assert_eq!(access.check(&headers("authorization", &token)), Ok(()));
        assert_eq!(access.check(&headers("token", &token)), Ok(()));
        let later = Instant::now() + LIFE;
        access.tokens.lock().turn(later);
        assert_eq!(access.check(&headers("token", &token)), Ok(()));
        assert_ne!(access.authenticate("u", "p").unwrap(), token);
        access.tokens.lock().turn(later + LIFE);
        assert_eq!(access.check(&headers("token", &token)), Err(EtcdError::InvalidAuthToken));
    }
}
