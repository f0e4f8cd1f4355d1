//! An S3-compatible store: how it is reached, and for how long it is asked.

use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::{BackoffConfig, ClientOptions, RetryConfig};
use secrecy::{ExposeSecret as _, SecretString};

use super::ArtifactError;
use crate::config;
use crate::secrets::SecretRef;

/// For a connection, for one request with its body, and for a request with its repetitions. What a put sends again is the
/// same bytes under the same name, so it may be.
const CONNECT: Duration = Duration::from_secs(5);
const REQUEST: Duration = Duration::from_secs(30);
const IN_ALL: Duration = Duration::from_secs(10);
const RETRIES: usize = 4;

/// The bytes of a put are signed with it, so the server refuses what was changed on the way.
pub(super) fn open(bucket: &str, settings: &config::Artifacts) -> Result<AmazonS3, ArtifactError> {
    // The client asks for the provider even where it speaks plain HTTP; who installed it first stays.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let backoff = BackoffConfig {
        init_backoff: Duration::from_millis(100),
        max_backoff: Duration::from_secs(2),
        ..BackoffConfig::default()
    };
    let options = ClientOptions::new()
        .with_allow_http(settings.allow_http)
        .with_connect_timeout(CONNECT)
        .with_timeout(REQUEST);
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(&settings.region)
        .with_client_options(options)
        .with_retry(RetryConfig { backoff, max_retries: RETRIES, retry_timeout: IN_ALL });
    if let Some(endpoint) = &settings.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(id) = &settings.access_key_id {
        builder = builder.with_access_key_id(read(id)?.expose_secret());
    }
    if let Some(secret) = &settings.secret_access_key {
        builder = builder.with_secret_access_key(read(secret)?.expose_secret());
    }
    builder.build().map_err(ArtifactError::Unavailable)
}

fn read(secret: &SecretRef) -> Result<SecretString, ArtifactError> {
    secret.read().map_err(|source| {
        ArtifactError::Unavailable(object_store::Error::Generic { store: "S3", source: source.into() })
    })
}
