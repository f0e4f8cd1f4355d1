//! **known_hosts**, as OpenSSH's sshd(8) describes it: which keys a server may show.
//!
//! Strict: a server is known by its name *and* port (`[host]:port` unless the port is 22), hashed names are compared by
//! HMAC-SHA1, a revoked key is refused whatever else is said of it, and nothing is ever added. Lines that cannot be read
//! and certificate authorities vouch for nobody.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use russh::keys::{Algorithm, HashAlg, PublicKey};

/// Why a server is not believed to be who it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostKeyError {
    #[error(
        "the host {host} is not known: it shows the key {shown}; if the site publishes the same, add its line for {host} to {}",
        file.display()
    )]
    Unknown { host: String, shown: String, file: PathBuf },
    #[error(
        "the host {host} shows another key than it had: {shown}, and line {line} of {} says {expected}; either the site has \
         changed it, and says so, or somebody stands between", file.display()
    )]
    Changed { host: String, shown: String, expected: String, line: usize, file: PathBuf },
    #[error("the host {host} shows the key {shown}, which line {line} of {} has revoked", file.display())]
    Revoked { host: String, shown: String, line: usize, file: PathBuf },
}

#[derive(Debug)]
enum Names {
    Patterns(Vec<String>),
    Hashed { salt: Vec<u8>, hash: Vec<u8> },
}

#[derive(Debug)]
struct Entry {
    line: usize,
    revoked: bool,
    names: Names,
    key: PublicKey,
}

/// The entries of one file.
#[derive(Debug)]
pub struct KnownHosts {
    file: PathBuf,
    entries: Vec<Entry>,
}

impl KnownHosts {
    /// Reads the text of `file`.
    pub fn parse(text: &str, file: &Path) -> Self {
        let entries = text.lines().enumerate().filter_map(|(at, line)| entry(at + 1, line)).collect();
        Self { file: file.to_owned(), entries }
    }

    /// How many lines name a key.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether the server at `host` and `port` may show `key`.
    pub fn check(&self, host: &str, port: u16, key: &PublicKey) -> Result<(), HostKeyError> {
        let host = name(host, port);
        let (shown, file) = (describe(key), self.file.clone());
        let (revoked, trusted): (Vec<&Entry>, Vec<&Entry>) =
            self.entries.iter().filter(|entry| entry.names.match_(&host)).partition(|entry| entry.revoked);
        let same = |entry: &Entry| entry.key.key_data() == key.key_data();
        if let Some(entry) = revoked.into_iter().find(|entry| same(entry)) {
            return Err(HostKeyError::Revoked { host, shown, line: entry.line, file });
        }
        if trusted.iter().any(|entry| same(entry)) {
            return Ok(());
        }
        // The one of the same kind says most about what has changed.
        let alike = trusted.iter().find(|entry| entry.key.algorithm() == key.algorithm());
        match alike.or(trusted.first()) {
            None => Err(HostKeyError::Unknown { host, shown, file }),
            Some(entry) => {
                let expected = describe(&entry.key);
                Err(HostKeyError::Changed { host, shown, expected, line: entry.line, file })
            }
        }
    }

    /// The kinds of keys that are known of a server, to be asked for first: it shows one only, of the kind asked for.
    pub(super) fn algorithms(&self, host: &str, port: u16) -> Vec<Algorithm> {
        let host = name(host, port);
        let known = self.entries.iter().filter(|entry| !entry.revoked && entry.names.match_(&host));
        known.map(|entry| entry.key.algorithm()).collect()
    }
}

/// A line that names a key of a host; `None` for comments and for what vouches for nobody.
fn entry(line: usize, text: &str) -> Option<Entry> {
    let mut words = text.split_ascii_whitespace().peekable();
    let marker = words.next_if(|word| word.starts_with('@'));
    let revoked = match marker {
        None => false,
        Some("@revoked") => true,
        Some(_) => return None,
    };
    let names = words.next().filter(|names| !names.starts_with('#'))?;
    let (kind, key) = (words.next()?, words.next()?);
    let key = PublicKey::from_openssh(&format!("{kind} {key}")).ok()?;
    Some(Entry { line, revoked, names: Names::parse(names)?, key })
}

impl Names {
    fn parse(text: &str) -> Option<Self> {
        let Some(hashed) = text.strip_prefix("|1|") else {
            return Some(Self::Patterns(text.split(',').map(str::to_ascii_lowercase).collect()));
        };
        let (salt, hash) = hashed.split_once('|')?;
        Some(Self::Hashed { salt: STANDARD.decode(salt).ok()?, hash: STANDARD.decode(hash).ok()? })
    }

    fn match_(&self, host: &str) -> bool {
        match self {
            Self::Hashed { salt, hash } => {
                let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, salt);
                hmac::verify(&key, host.as_bytes(), hash).is_ok()
            }
            Self::Patterns(patterns) => {
                let excluded = patterns.iter().filter_map(|pattern| pattern.strip_prefix('!'));
                patterns.iter().any(|pattern| !pattern.starts_with('!') && wildcard(pattern, host))
                    && !excluded.into_iter().any(|pattern| wildcard(pattern, host))
            }
        }
    }
}

/// `*` stands for any text, `?` for any one character.
fn wildcard(pattern: &str, text: &str) -> bool {
    let mut rest = text.chars();
    let mut left = pattern.chars();
    while let Some(wanted) = left.next() {
        match wanted {
            '*' => {
                let after = left.as_str();
                let text = rest.as_str();
                let starts = text.char_indices().map(|(at, _)| at).chain([text.len()]);
                return starts.into_iter().any(|at| wildcard(after, &text[at..]));
            }
            '?' if rest.next().is_none() => return false,
            '?' => {}
            wanted if rest.next() != Some(wanted) => return false,
            _ => {}
        }
    }
    rest.as_str().is_empty()
}

/// A host as known_hosts writes it.
fn name(host: &str, port: u16) -> String {
    let host = host.to_ascii_lowercase();
    if port == 22 { host } else { format!("[{host}]:{port}") }
}

fn describe(key: &PublicKey) -> String {
    format!("{} {}", key.algorithm(), key.fingerprint(HashAlg::Sha256))
}

#[cfg(test)]
mod tests {
    use super::*;

    // Made with ssh-keygen for this test; `ssh-keygen -lf` and `-H` gave the fingerprint and the hashed line.
    const A: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPMmqKcPuDljFknIVbqJNQyrrMyOozR/ZBhttawTOlZN";
    const A_PRINT: &str = "SHA256:GZN+L53NhnPc0edUQreBwzFP5i45NTGw5uqy2Gcc4rE";
    const B: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFgm4tTx9R7MPWMjyzu5icyfdTefegReQFMbQ7mAHjKr";
    const ECDSA: &str = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBCGdX4EpyfOIJi2c8PIyAI6JzCAQbd/CvjzIruvq8mzQby2XZ4oky85nAW4XTlfdNOs1Pflo3AYKmvJsLNQhqOc=";
    const HASHED: &str = "|1|R5FDicLku+ne6D18mh5LeUbezpQ=|d5FyCCBECqdqexVBQrInCwZAFkw= ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPMmqKcPuDljFknIVbqJNQyrrMyOozR/ZBhttawTOlZN";

    fn check(text: &str, host: &str, port: u16, key: &str) -> Result<(), HostKeyError> {
        let hosts = KnownHosts::parse(text, Path::new("/slot/known_hosts"));
        hosts.check(host, port, &PublicKey::from_openssh(key).unwrap())
    }

    #[test]
    fn a_host_is_known_by_its_name_and_its_port() {
        let text = format!("# sites\n\nlogin {A} comment\n[login]:2222 {B}\n");
        check(&text, "login", 22, A).unwrap();
        check(&text, "LOGIN", 2222, B).unwrap();
        let unknown = check(&text, "login", 2022, A).unwrap_err();
        assert!(matches!(&unknown, HostKeyError::Unknown { host, .. } if host == "[login]:2022"));
        let said = unknown.to_string();
        assert!(said.contains(A_PRINT) && said.contains("/slot/known_hosts"), "{said}");
    }

    #[test]
    fn another_key_than_the_known_one_is_not_the_same_as_an_unknown_host() {
        let text = format!("login {ECDSA}\nlogin {B}\n");
        let changed = check(&text, "login", 22, A).unwrap_err();
        assert!(
            matches!(&changed, HostKeyError::Changed { line: 2, .. }),
            "the line of the same kind: {changed}"
        );
        let other_kind = check(&format!("login {ECDSA}\n"), "login", 22, A).unwrap_err();
        assert!(matches!(other_kind, HostKeyError::Changed { line: 1, .. }), "{other_kind}");
    }

    #[test]
    fn a_hashed_name_is_found_and_no_other_name_is() {
        check(HASHED, "login.example.org", 2222, A).unwrap();
        for (host, port) in [("login.example.org", 22), ("other.example.org", 2222)] {
            assert!(matches!(check(HASHED, host, port, A), Err(HostKeyError::Unknown { .. })));
        }
    }

    #[test]
    fn a_revoked_key_is_refused_whatever_else_is_said_of_it() {
        let text = format!("login {A}\n@revoked * {A}\n");
        assert!(matches!(check(&text, "login", 22, A), Err(HostKeyError::Revoked { line: 2, .. })));
        let only_revoked = format!("@revoked login {B}\n");
        assert!(matches!(check(&only_revoked, "login", 22, A), Err(HostKeyError::Unknown { .. })));
    }

    #[test]
    fn patterns_stand_for_many_hosts_and_may_leave_some_out() {
        let text = format!("*.example.org,!bad.example.org,node? {A}\n");
        for host in ["a.example.org", "a.b.example.org", "node1"] {
            check(&text, host, 22, A).unwrap();
        }
        for host in ["bad.example.org", "example.org", "node", "node12", "xnode1"] {
            assert!(matches!(check(&text, host, 22, A), Err(HostKeyError::Unknown { .. })), "{host}");
        }
    }

    #[test]
    fn what_cannot_be_read_vouches_for_nobody() {
        let text =
            format!("@cert-authority login {A}\nlogin ssh-ed25519 AAAA\nlogin\n|1|x {A}\n|1|!|! {A}\n");
        let hosts = KnownHosts::parse(&text, Path::new("x"));
        assert_eq!(hosts.len(), 0);
        assert!(matches!(check(&text, "login", 22, A), Err(HostKeyError::Unknown { .. })));
    }

    #[test]
    fn the_kinds_of_keys_known_of_a_host_are_those_it_is_asked_for() {
        let hosts = KnownHosts::parse(&format!("a {ECDSA}\nb {A}\n@revoked a {B}\n"), Path::new("x"));
        let names: Vec<String> = hosts.algorithms("a", 22).iter().map(ToString::to_string).collect();
        assert_eq!(names, ["ecdsa-sha2-nistp256"]);
    }
}
