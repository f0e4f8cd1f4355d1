//! **Credential slots**: `<credentials directory>/ssh/<slot>/{private_key,passphrase,known_hosts}`.
//!
//! Read anew for each connection, so that a key is replaced by replacing its file. Whoever else may read a key, or write
//! what it is trusted with, makes it no secret: such a slot is refused with the command that puts it right.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use russh::keys::{self, PrivateKey, decode_secret_key};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;

use super::known_hosts::KnownHosts;

/// What is wrong with a slot, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    #[error(
        "{0:?} is no name of a credential slot: up to 64 letters, digits and any of . _ -, no dot or dash first"
    )]
    Name(String),
    #[error("there is no credential slot {slot}: make the directory {} with private_key and known_hosts in it", path.display())]
    NoSlot { slot: String, path: PathBuf },
    #[error("credential slot {slot} has no {name}: put it at {}", path.display())]
    Missing { slot: String, name: &'static str, path: PathBuf },
    #[error("{} has mode {mode:04o}, so others may {what} it: chmod {wanted:03o} {}", path.display(), path.display())]
    TooOpen { path: PathBuf, mode: u32, what: &'static str, wanted: u32 },
    #[error("{} belongs to user {owner}, not to the user of this process: chown {us} {}", path.display(), path.display())]
    Owner { path: PathBuf, owner: u32, us: u32 },
    #[error("{} cannot be read: {detail}", path.display())]
    Unreadable { path: PathBuf, detail: String },
    #[error("{} is encrypted, and its passphrase is missing: put it at {}, mode 600", key.display(), path.display())]
    NoPassphrase { key: PathBuf, path: PathBuf },
    #[error("the passphrase in {} does not open {}", path.display(), key.display())]
    WrongPassphrase { key: PathBuf, path: PathBuf },
    /// One in 256 ecdsa keys has a short number in it, which the library does not read in OpenSSH's own format.
    #[error(
        "{} is no private key that we can use: one of kind ed25519, ecdsa or rsa; where ssh-keygen -y -f reads it, \
         ssh-keygen -p -m PKCS8 -f {} writes it as we can", .0.display(), .0.display()
    )]
    NotAKey(PathBuf),
}

/// Which parts of a slot are there. Never what is in them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Presence {
    pub name: String,
    pub private_key: bool,
    pub public_key: bool,
    pub passphrase: bool,
    pub known_hosts: bool,
}

/// A slot, read and checked.
pub(super) struct Slot {
    pub key: Arc<PrivateKey>,
    pub known_hosts: KnownHosts,
}

/// The directory with the slots.
#[derive(Clone, Debug)]
pub struct Credentials {
    directory: PathBuf,
}

/// Whether `name` can be the name of a slot: nothing that leads out of the directory.
pub fn check_name(name: &str) -> Result<(), CredentialError> {
    let fits = name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    if fits { Ok(()) } else { Err(CredentialError::Name(name.to_owned())) }
}

impl Credentials {
    /// The slots below `credentials_dir`. It need not exist.
    pub fn new(credentials_dir: &Path) -> Self {
        Self { directory: credentials_dir.join("ssh") }
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The slots that are there, by name. What cannot be a slot's name is none.
    pub fn slots(&self) -> io::Result<Vec<Presence>> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            found.extend(name.to_str().and_then(|name| self.presence(name).ok()));
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Which parts of one slot are there.
    pub fn presence(&self, slot: &str) -> Result<Presence, CredentialError> {
        let path = self.path(slot)?;
        let has = |name: &str| path.join(name).is_file();
        Ok(Presence {
            name: slot.to_owned(),
            private_key: has("private_key"),
            public_key: has("private_key.pub") || has("public_key"),
            passphrase: has("passphrase"),
            known_hosts: has("known_hosts"),
        })
    }

    /// What a connection would find: each check by name, with what is wrong.
    pub fn check(&self, slot: &str) -> Vec<(&'static str, Result<String, CredentialError>)> {
        let path = match self.path(slot) {
            Ok(path) => path,
            Err(error) => return vec![("slot", Err(error))],
        };
        vec![
            ("slot", self.guarded(&path).map(|()| path.display().to_string())),
            ("private key", self.key(slot, &path).map(|key| describe(&key))),
            ("known_hosts", self.hosts(slot, &path).map(|hosts| format!("{} keys of hosts", hosts.len()))),
        ]
    }

    /// Reads and checks a slot.
    pub(super) fn load(&self, slot: &str) -> Result<Slot, CredentialError> {
        let path = self.path(slot)?;
        self.guarded(&path)?;
        Ok(Slot { key: Arc::new(self.key(slot, &path)?), known_hosts: self.hosts(slot, &path)? })
    }

    fn path(&self, slot: &str) -> Result<PathBuf, CredentialError> {
        check_name(slot)?;
        let path = self.directory.join(slot);
        if path.is_dir() { Ok(path) } else { Err(CredentialError::NoSlot { slot: slot.to_owned(), path }) }
    }

    /// Whoever may write to the directory may put another key there.
    fn guarded(&self, slot: &Path) -> Result<(), CredentialError> {
        for path in [&self.directory, slot] {
            check_mode(path, 0o022, "change", 0o700)?;
        }
        Ok(())
    }

    fn key(&self, slot: &str, directory: &Path) -> Result<PrivateKey, CredentialError> {
        let (path, phrase_path) = (directory.join("private_key"), directory.join("passphrase"));
        let text = secret(&path)?.ok_or_else(|| CredentialError::Missing {
            slot: slot.to_owned(),
            name: "private_key",
            path: path.clone(),
        })?;
        let phrase = secret(&phrase_path)?;
        let encrypted = text.expose_secret().contains("ENCRYPTED")
            || matches!(decode_secret_key(text.expose_secret(), None), Err(keys::Error::KeyIsEncrypted));
        match (encrypted, phrase) {
            (true, None) => Err(CredentialError::NoPassphrase { key: path, path: phrase_path }),
            (true, Some(phrase)) => {
                let phrase = phrase.expose_secret().trim_end_matches(['\r', '\n']);
                decode_secret_key(text.expose_secret(), Some(phrase))
                    .map_err(|_| CredentialError::WrongPassphrase { key: path, path: phrase_path })
            }
            // A passphrase that is not needed is not used.
            (false, _) => {
                decode_secret_key(text.expose_secret(), None).map_err(|_| CredentialError::NotAKey(path))
            }
        }
    }

    fn hosts(&self, slot: &str, directory: &Path) -> Result<KnownHosts, CredentialError> {
        let path = directory.join("known_hosts");
        if !path.exists() {
            return Err(CredentialError::Missing { slot: slot.to_owned(), name: "known_hosts", path });
        }
        check_mode(&path, 0o022, "change", 0o644)?;
        let text = fs::read_to_string(&path).map_err(|error| unreadable(&path, &error))?;
        Ok(KnownHosts::parse(&text, &path))
    }
}

/// A file that only its owner may read; `None` when there is none.
fn secret(path: &Path) -> Result<Option<SecretString>, CredentialError> {
    if !path.exists() {
        return Ok(None);
    }
    check_mode(path, 0o077, "read", 0o600)?;
    let text = fs::read_to_string(path).map_err(|error| unreadable(path, &error))?;
    Ok(Some(text.into()))
}

fn check_mode(path: &Path, forbidden: u32, what: &'static str, wanted: u32) -> Result<(), CredentialError> {
    let found = fs::metadata(path).map_err(|error| unreadable(path, &error))?;
    let us = rustix::process::geteuid().as_raw();
    // Who owns a file may change its mode; root may anyway.
    if found.uid() != us && found.uid() != 0 {
        return Err(CredentialError::Owner { path: path.to_owned(), owner: found.uid(), us });
    }
    let mode = found.mode() & 0o7777;
    if mode & forbidden == 0 {
        return Ok(());
    }
    Err(CredentialError::TooOpen { path: path.to_owned(), mode, what, wanted })
}

fn unreadable(path: &Path, error: &io::Error) -> CredentialError {
    CredentialError::Unreadable { path: path.to_owned(), detail: error.to_string() }
}

fn describe(key: &PrivateKey) -> String {
    format!("{} {}", key.algorithm(), key.fingerprint(keys::HashAlg::Sha256))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slots_name_leads_nowhere_else() {
        for name in ["", ".", "..", ".ssh", "a/b", "../a", "a b", "a\0", "-a", &"x".repeat(65)] {
            assert_eq!(check_name(name), Err(CredentialError::Name(name.to_owned())));
        }
        for name in ["default", "setonix-2026", "a.b_c"] {
            check_name(name).unwrap();
        }
    }

    #[test]
    fn where_no_directory_is_there_are_no_slots() {
        let credentials = Credentials::new(Path::new("/nonexistent"));
        assert_eq!(credentials.slots().unwrap(), vec![]);
        assert!(matches!(credentials.presence("a"), Err(CredentialError::NoSlot { .. })));
    }
}
