//! **Sealed secrets**: what somebody sent as plain text and only this service is to read again.
//!
//! A sealed object lies in the artifact store, encrypted with AES-256-GCM; an event has its SHA-256. It is bound to the thing
//! and the field that it was sealed for, so that it opens nowhere else, and names its key, so that a service that has another
//! one can say so. The nonce is made from what is sealed (HMAC-SHA-256 under a key of its own): the same secret in the same
//! place is the same object, and a request that is repeated changes nothing.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use secrecy::SecretString;
use sha2::{Digest, Sha256};

use crate::artifacts::{ArtifactError, Artifacts};
use crate::clock::Clock;

/// What stands for a secret wherever one would be shown.
pub const REDACTED: &str = "[REDACTED]";

/// The layout of an object: this byte, the key's id, the nonce, then what is encrypted.
const LAYOUT: u8 = 1;
const ID_LEN: usize = 8;
const HEAD: usize = 1 + ID_LEN + NONCE_LEN;

#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error("the sealing key in {path} cannot be used: {what}")]
    Key { path: PathBuf, what: String },
    #[error(
        "the secret was sealed with another key than this service has: copy the sealing key of the service that sealed it"
    )]
    OtherKey,
    #[error("the sealed secret was not sealed for this, or is damaged")]
    NotOurs,
    #[error(transparent)]
    Store(#[from] ArtifactError),
}

/// The key of an installation.
pub struct Sealing {
    id: [u8; ID_LEN],
    encrypt: LessSafeKey,
    name: hmac::Key,
    sign: hmac::Key,
}

impl std::fmt::Debug for Sealing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealing").field("id", &hex::encode(self.id)).finish_non_exhaustive()
    }
}

/// What an object is bound to; parts are length-prefixed so that they cannot be shifted.
fn place(owner: &str, field: &str) -> Vec<u8> {
    let mut place = Vec::with_capacity(16 + owner.len() + field.len());
    for part in [owner, field] {
        place.extend((part.len() as u64).to_be_bytes());
        place.extend(part.as_bytes());
    }
    place
}

impl Sealing {
    /// With this key.
    pub fn of(key: &[u8; 32]) -> Self {
        let derived = |what: &str| {
            let mut digest = Sha256::new_with_prefix(what);
            digest.update(key);
            <[u8; 32]>::from(digest.finalize())
        };
        let unbound = UnboundKey::new(&AES_256_GCM, &derived("beampipe sealing: encrypt"))
            .expect("a digest is as long as the cipher's key");
        let mut id = [0; ID_LEN];
        id.copy_from_slice(&derived("beampipe sealing: id")[..ID_LEN]);
        Self {
            id,
            encrypt: LessSafeKey::new(unbound),
            name: hmac::Key::new(hmac::HMAC_SHA256, &derived("beampipe sealing: nonce")),
            sign: hmac::Key::new(hmac::HMAC_SHA256, &derived("beampipe sealing: sign")),
        }
    }

    /// With the key in `path`, which is drawn and written if there is none.
    pub fn open(path: &Path, clock: &Clock) -> Result<Self, SealError> {
        let wrong = |what: String| SealError::Key { path: path.to_owned(), what };
        let mut new = std::fs::OpenOptions::new();
        match new.write(true).create_new(true).mode(0o600).open(path) {
            Ok(mut file) => {
                let line = format!("{}\n", hex::encode(clock.random::<32>()));
                let written = file.write_all(line.as_bytes()).and_then(|()| file.sync_all());
                written.map_err(|error| wrong(error.to_string()))?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(wrong(error.to_string())),
        }
        let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        let mut key = [0; 32];
        hex::decode_to_slice(text.trim(), &mut key)
            .map_err(|_| wrong("it is not 64 hexadecimal digits".into()))?;
        Ok(Self::of(&key))
    }

    /// Signs `text` for a purpose: HMAC-SHA-256.
    pub fn sign(&self, purpose: &str, text: &str) -> [u8; 32] {
        let mut signed = [0; 32];
        signed.copy_from_slice(hmac::sign(&self.sign, &place(purpose, text)).as_ref());
        signed
    }

    /// Whether `signature` is ours, compared in constant time.
    pub fn is_signed(&self, purpose: &str, text: &str, signature: &[u8]) -> bool {
        hmac::verify(&self.sign, &place(purpose, text), signature).is_ok()
    }

    fn encrypted(&self, owner: &str, field: &str, secret: &str) -> Vec<u8> {
        let place = place(owner, field);
        let mut context = hmac::Context::with_key(&self.name);
        context.update(&place);
        context.update(secret.as_bytes());
        let mut nonce = [0; NONCE_LEN];
        nonce.copy_from_slice(&context.sign().as_ref()[..NONCE_LEN]);
        let mut body = secret.as_bytes().to_vec();
        self.encrypt
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(&place), &mut body)
            .expect("a secret is shorter than what the cipher takes");
        [&[LAYOUT][..], &self.id, &nonce, &body].concat()
    }

    fn decrypted(&self, owner: &str, field: &str, object: &[u8]) -> Result<SecretString, SealError> {
        if object.len() < HEAD || object[0] != LAYOUT {
            return Err(SealError::NotOurs);
        }
        let (head, body) = object.split_at(HEAD);
        if head[1..=ID_LEN] != self.id {
            return Err(SealError::OtherKey);
        }
        let nonce = Nonce::try_assume_unique_for_key(&head[1 + ID_LEN..]).map_err(|_| SealError::NotOurs)?;
        let mut body = body.to_vec();
        let plain = self
            .encrypt
            .open_in_place(nonce, Aad::from(place(owner, field)), &mut body)
            .map_err(|_| SealError::NotOurs)?;
        let text = std::str::from_utf8(plain).map_err(|_| SealError::NotOurs)?;
        Ok(text.to_owned().into())
    }

    /// Seals `secret` for a field of `owner`; answers the SHA-256 of the object.
    pub async fn seal(
        &self,
        artifacts: &Artifacts,
        owner: &str,
        field: &str,
        secret: &str,
    ) -> Result<String, SealError> {
        Ok(artifacts.put(self.encrypted(owner, field, secret).into()).await?.sha256)
    }

    /// Opens what was sealed for a field of `owner`.
    pub async fn unseal(
        &self,
        artifacts: &Artifacts,
        owner: &str,
        field: &str,
        sha256: &str,
    ) -> Result<SecretString, SealError> {
        self.decrypted(owner, field, &artifacts.get(sha256).await?)
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    #[tokio::test]
    async fn what_is_sealed_opens_with_the_same_key_in_the_same_place_and_nowhere_else() {
        let directory = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::local(&directory.path().join("artifacts")).unwrap();
        let ours = Sealing::of(&[7; 32]);
        let sealed = ours.seal(&artifacts, "channel-1", "url", "https://hooks/secret").await.unwrap();
        let opened = ours.unseal(&artifacts, "channel-1", "url", &sealed).await.unwrap();
        assert_eq!(opened.expose_secret(), "https://hooks/secret");
        for (owner, field) in [("channel-2", "url"), ("channel-1", "headers.x"), ("channel-1u", "rl")] {
            let error = ours.unseal(&artifacts, owner, field, &sealed).await.unwrap_err();
            assert!(matches!(error, SealError::NotOurs), "{owner} {field}: {error}");
        }
        let theirs = Sealing::of(&[8; 32]).unseal(&artifacts, "channel-1", "url", &sealed).await;
        assert!(matches!(theirs.unwrap_err(), SealError::OtherKey));
        let object = artifacts.get(&sealed).await.unwrap();
        assert!(!object.windows(6).any(|part| part == b"secret"), "it is not to be read in the store");
    }

    #[test]
    fn the_same_secret_in_the_same_place_is_the_same_object_and_elsewhere_another() {
        let ours = Sealing::of(&[7; 32]);
        assert_eq!(ours.encrypted("a", "url", "s"), ours.encrypted("a", "url", "s"));
        let nonce = |object: &[u8]| object[1 + ID_LEN..HEAD].to_vec();
        let first = nonce(&ours.encrypted("a", "url", "s"));
        for other in [ours.encrypted("a", "url", "t"), ours.encrypted("b", "url", "s")] {
            assert_ne!(nonce(&other), first, "no nonce is used for two messages");
        }
    }

    #[test]
    fn an_object_that_was_altered_does_not_open() {
        let ours = Sealing::of(&[7; 32]);
        let object = ours.encrypted("a", "url", "s");
        for place in 0..object.len() {
            let mut altered = object.clone();
            altered[place] ^= 1;
            assert!(ours.decrypted("a", "url", &altered).is_err(), "byte {place}");
        }
        assert!(ours.decrypted("a", "url", &object[..4]).is_err());
    }

    #[test]
    fn a_key_is_drawn_once_for_its_owner_alone_and_never_shown() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sealing.key");
        let first = Sealing::open(&path, &Clock::system()).unwrap();
        let again = Sealing::open(&path, &Clock::system()).unwrap();
        assert_eq!(first.id, again.id);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let key = std::fs::read_to_string(&path).unwrap();
        assert!(!format!("{first:?}").contains(key.trim()));
        std::fs::write(&path, "short").unwrap();
        let error = Sealing::open(&path, &Clock::system()).unwrap_err().to_string();
        assert!(error.contains("64 hexadecimal") && !error.contains("short"), "{error}");
    }
}
