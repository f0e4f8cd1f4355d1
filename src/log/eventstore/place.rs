//! The connection string: what of it is the client's, and what of it may be shown.

use eventstore::ClientSettings;

const SCHEMES: [&str; 4] = ["esdb", "esdb+discover", "kurrentdb", "kurrentdb+discover"];

/// Why a connection string is none.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    #[error("log.url starts with {found:?}, not with esdb:// or kurrentdb://")]
    Scheme { found: String },
    #[error("log.url has a password in it: say with log.password where one is")]
    Password,
    #[error("log.url is no connection string: {0}")]
    Malformed(String),
}

pub(super) struct Place {
    pub settings: ClientSettings,
    /// Scheme and hosts.
    pub shown: String,
    /// The user that the address names.
    pub user: Option<String>,
}

/// Reads a connection string. Every call goes to the leader: a follower that is behind would make answers go back in time.
pub(super) fn parse(url: &str) -> Result<Place, PlaceError> {
    let (scheme, rest) = url.split_once("://").unwrap_or((url, ""));
    if !SCHEMES.contains(&scheme) {
        return Err(PlaceError::Scheme { found: scheme.chars().take(20).collect() });
    }
    let (before, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (user, hosts) = match before.trim_end_matches('/').rsplit_once('@') {
        Some((user, hosts)) => (Some(user), hosts),
        None => (None, before.trim_end_matches('/')),
    };
    if user.is_some_and(|user| user.contains(':')) {
        return Err(PlaceError::Password);
    }
    if hosts.is_empty() || hosts.contains('/') {
        return Err(PlaceError::Malformed("it needs hosts and no path".into()));
    }
    let is_preference = |pair: &&str| pair.to_ascii_lowercase().starts_with("nodepreference=");
    let mut query: Vec<&str> =
        query.split('&').filter(|pair| !pair.is_empty() && !is_preference(pair)).collect();
    query.push("nodePreference=leader");
    let shown = format!("{scheme}://{hosts}");
    let settings: ClientSettings = format!("{shown}?{}", query.join("&"))
        .parse()
        .map_err(|error: eventstore::ClientSettingsParseError| PlaceError::Malformed(error.to_string()))?;
    // The client takes any text for a host, and panics later.
    let odd = |host: &str| url::Host::parse(host).is_err();
    if let Some(endpoint) = settings.hosts().iter().find(|endpoint| odd(&endpoint.host)) {
        return Err(PlaceError::Malformed(format!("{:?} is no host", endpoint.host)));
    }
    Ok(Place { settings, shown, user: user.map(str::to_owned) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_node_and_a_cluster_are_understood() {
        for (url, hosts, secure) in [
            ("esdb://localhost:2113?tls=false", 1, false),
            ("kurrentdb://db.example.org", 1, true),
            ("esdb://a:2113,b:2113,c:2113?tlsVerifyCert=false&nodePreference=follower", 3, true),
            ("esdb+discover://db.example.org:2113", 1, true),
        ] {
            let place = parse(url).unwrap();
            assert_eq!(place.settings.hosts().len(), hosts, "{url}");
            assert_eq!(place.settings.is_secure_mode_enabled(), secure, "{url}");
            assert_eq!(place.settings.node_preference(), eventstore::NodePreference::Leader);
            assert!(!place.shown.contains('?'));
            assert_eq!(place.user, None);
        }
        let named = parse("esdb://admin@a:2111,b:2112?tls=true").unwrap();
        assert_eq!((named.user.as_deref(), &*named.shown), (Some("admin"), "esdb://a:2111,b:2112"));
    }

    #[test]
    fn a_password_in_the_url_is_refused_and_not_repeated() {
        let refused = parse("esdb://admin:changeit@localhost:2113").err().unwrap();
        assert!(!refused.to_string().contains("changeit"), "{refused}");
    }

    #[test]
    fn what_is_no_connection_string_is_said_so() {
        for url in ["http://localhost", "esdb://", "esdb://a/b", "esdb://a b", "esdb:", "esdb://a:b"] {
            assert!(parse(url).is_err(), "{url}");
        }
    }
}
