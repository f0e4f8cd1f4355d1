//! Planted secrets are searched for in everything that leaves the service: answers, streams, metrics, exports, its own
//! output, its files.

use std::path::Path;
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use beampipe::auth::sha256_hex;
use reqwest::Method;
use rusqlite::Connection;
use serde_json::{Value, json};

use super::service::{PROJECT, Service, words};
use super::streams::{Reader, created, discovered, execute};

/// What was planted, and what it must not be found in.
#[derive(Default)]
pub struct Canaries {
    /// To be found nowhere at all.
    raw: Vec<(String, String)>,
    /// What is kept instead: in the log's private fields and the accounts' read model, and in no output.
    kept: Vec<(String, String)>,
}

impl Canaries {
    pub fn plant(&mut self, what: &str, secret: &str) -> String {
        self.raw.push((what.to_owned(), secret.to_owned()));
        secret.to_owned()
    }

    /// The first secret that was planted in something of this name.
    pub fn raw_of(&self, name: &str) -> &str {
        let found = self.raw.iter().find(|(what, _)| what.contains(name));
        found.map_or("", |(_, secret)| secret)
    }

    /// A token as it was shown once: its secret part, and the digest of that.
    fn token(&mut self, what: &str, token: &Value) -> String {
        let token = token.as_str().unwrap();
        let secret = token.splitn(3, '_').last().unwrap();
        self.raw.push((what.to_owned(), secret.to_owned()));
        self.kept.push((format!("the digest of {what}"), sha256_hex(secret.as_bytes())));
        token.to_owned()
    }

    #[track_caller]
    pub fn are_not_raw_in(&self, place: &str, bytes: &[u8]) {
        // Latin-1 is a text whatever the bytes are.
        let text: String = bytes.iter().map(|byte| char::from(*byte)).collect();
        for (what, secret) in &self.raw {
            assert!(!text.contains(secret), "{what} is in {place}");
        }
    }

    #[track_caller]
    pub fn are_not_in(&self, place: &str, text: &str) {
        self.are_not_raw_in(place, text.as_bytes());
        for (what, kept) in &self.kept {
            assert!(!text.contains(kept), "{what} is in {place}: {text}");
        }
        assert!(!text.contains("$argon2"), "the hash of a password is in {place}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_secrets_are_in_no_output_and_in_no_file() {
    let mut service = discovered(0).await;
    let mut canaries = Canaries::default();
    let said = service.said();
    let password = said.lines().find_map(|line| line.trim().strip_prefix("password: ")).unwrap().trim();
    canaries.plant("the first password", password);
    canaries.token("the first key", &json!(service.key));
    for (what, secret) in canaries.raw.clone() {
        assert_eq!(said.matches(&secret).count(), 1, "{what} is shown once, at the first start");
    }
    let execution = created(&service).await;
    execute(&service, &execution).await;
    let bound = std::time::Duration::from_secs(20);
    service.until("completed", bound, |all| all.iter().all(|e| e["status"] == "completed")).await;

    // Whatever is refused may have a secret in it, too.
    let mut refusals = vec![];
    accounts(&service, &mut canaries, &mut refusals).await;
    mistakes(&service, &mut canaries, &mut refusals).await;
    for (place, refusal) in &refusals {
        canaries.are_not_in(place, refusal);
    }

    // The next start traces all there is to trace.
    service.stop().await;
    let hidden = canaries.plant("a key in the environment", "bpk_canary-in-the-environment");
    let more = [("BEAMPIPE_TELEMETRY__FILTER", "trace"), ("BEAMPIPE_KEY", hidden.as_str())];
    service.start_again(&more).await;
    let mut again = vec![];
    accounts(&service, &mut canaries, &mut again).await;
    mistakes(&service, &mut canaries, &mut again).await;
    for (place, text) in again.iter().chain(&answers(&service, &execution).await) {
        canaries.are_not_in(place, text);
    }
    commands(&service, &canaries);
    service.stop().await;
    canaries.are_not_in("what the second start said", &service.said());

    // A row that was altered is reported, and not with what is private.
    let file = service.state_dir().join("read-models/accounts.sqlite");
    let db = Connection::open(file).unwrap();
    let changed = db.execute("UPDATE accounts SET password_hash = password_hash || 'x'", []).unwrap();
    assert!(changed > 0);
    drop(db);
    let verified = service.command(&["projections", "verify"]);
    assert!(!verified.status.success() && words(&verified).contains("password_hash"), "{}", words(&verified));
    canaries.are_not_in("projections verify", &words(&verified));

    files(&service, &canaries);
}

/// Accounts, passwords and keys as they are made and used.
async fn accounts(service: &Service, canaries: &mut Canaries, refusals: &mut Vec<(String, String)>) {
    let round = refusals.len() + canaries.raw.len();
    let name = format!("vera{round}");
    let password = canaries.plant("a password", &format!("canary password {round} chosen"));
    let second = canaries.plant("a second password", &format!("canary password {round} changed"));
    let vera = json!({"username": name, "role": "operator", "password": password});
    let made = service.post("/accounts", vera).await;
    refusals.push(("the answer to a new account".into(), made.to_string()));
    let login = service.post("/login", json!({"username": name, "password": password})).await;
    let access = canaries.token("an access token", &login["access_token"]);
    let refresh = canaries.token("a refresh token", &login["refresh_token"]);
    let rotated = service.post("/refresh", json!({"refresh_token": refresh})).await;
    canaries.token("a rotated access token", &rotated["access_token"]);
    canaries.token("a rotated refresh token", &rotated["refresh_token"]);
    let key = service.post("/api-keys", json!({"name": format!("k{round}")})).await;
    canaries.token("an API key", &key["api_key"]);
    let body = json!({"password": second});
    let path = format!("/accounts/{name}/password");
    let answer = service.request(Method::POST, &path).json(&body).send().await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    // Used once more, the old tokens are refused.
    for (path, body) in [
        ("/refresh", json!({"refresh_token": refresh})),
        ("/logout", json!({"access_token": access, "refresh_token": refresh})),
        ("/login", json!({"username": name, "password": password})),
    ] {
        let answer = service.request(Method::POST, path).json(&body).send().await.unwrap();
        refusals.push((format!("POST {path} with what was good"), answer.text().await.unwrap()));
    }
}

/// Secrets where they do not belong.
async fn mistakes(service: &Service, canaries: &mut Canaries, refusals: &mut Vec<(String, String)>) {
    let mut post = async |path: &str, body: &str| {
        let request = service.request(Method::POST, path).header("content-type", "application/json");
        let answer = request.body(body.to_owned()).send().await.unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert!(status.is_client_error(), "POST {path} {body}: {status} {text}");
        refusals.push((format!("POST {path} {body}"), text));
    };
    let wrong = canaries.plant("a wrong password", "canary-of-a-wrong-password");
    let as_name = canaries.plant("a password typed as a name", "canary-typed-as-a-name");
    let number = canaries.plant("a password of digits", "918273645546372819");
    post("/login", &json!({"username": "admin", "password": wrong}).to_string()).await;
    post("/login", &json!({"username": as_name, "password": "x"}).to_string()).await;
    post("/login", &format!(r#"{{"username": "admin", "password": {number}}}"#)).await;
    post("/login", &format!(r#"{{"username": "admin", "password": "{wrong}", }}"#)).await;
    post("/login", &format!(r#"{{"username": "admin", "password": {{"is": "{wrong}"}}}}"#)).await;
    post("/refresh", &json!({"refresh_token": wrong}).to_string()).await;
    post("/refresh", &format!(r#"{{"refresh_token": {number}}}"#)).await;
    post("/accounts", &json!({"username": "v", "password": wrong, "role": "emperor"}).to_string()).await;
    post("/user/me/password", &json!({"current_password": wrong, "new_password": "short"}).to_string()).await;

    let in_url = canaries.plant("a password in an address", "canary-in-an-address");
    let survey = super::service::survey_yaml();
    let tap = crate::backends::daliuge::told("BEAMPIPE_TEST_TAP_URL");
    for address in [
        format!("http://user:{in_url}@127.0.0.1:9/tap"),
        format!("http://{in_url}@127.0.0.1:9/tap"),
        format!("http://user:{in_url}@no host/tap"),
        format!("user:{in_url}@127.0.0.1"),
    ] {
        let yaml = survey.replace(&tap, &address);
        assert_ne!(yaml, survey);
        let upload = service.request(Method::POST, "/project-configs");
        let answer = upload.header("content-type", "application/x-yaml").body(yaml).send().await.unwrap();
        assert_eq!(answer.status(), 422);
        refusals.push((format!("an upload with {address}"), answer.text().await.unwrap()));
        for profile in [
            json!({"name": "p", "translation": {"tm_url": address}, "deployment": {"kind": "simulated"}}),
            json!({"name": "p", "deployment": {"kind": "rest_remote", "deploy_host": address, "deploy_port": 1}}),
        ] {
            let request = service.request(Method::POST, "/deployment-profiles").json(&profile);
            let answer = request.send().await.unwrap();
            let (status, text) = (answer.status(), answer.text().await.unwrap());
            assert_eq!(status, 422, "{profile}: {text}");
            refusals.push((format!("a profile with {address}"), text));
        }
    }

    let token = canaries.plant("a token that is none", "canary-of-no-token");
    let http = crate::backends::daliuge::http();
    for request in [
        http.get(service.url("/sources")).bearer_auth(&token),
        http.get(service.url("/sources")).header("x-api-key", &token),
        http.get(service.url("/sources")).basic_auth("admin", Some(&token)),
        service.request(Method::GET, &format!("/sources?limit=1&api_key={token}")),
    ] {
        let answer = request.send().await.unwrap();
        assert!(answer.status().is_client_error());
        refusals.push(("a request with a wrong token".into(), answer.text().await.unwrap()));
    }
}

/// Everything that can be read over HTTP, with the name of each.
async fn answers(service: &Service, execution: &str) -> Vec<(String, String)> {
    let sources = service.get(&format!("/sources?project_module={PROJECT}")).await;
    let source = sources[0]["uuid"].as_str().unwrap();
    let mut paths: Vec<String> = [
        "/health",
        "/ready",
        "/health/tap",
        "/metrics",
        "/workers",
        "/executions",
        "/jobs?limit=500",
        "/sources",
        "/deployment-profiles",
        "/projects",
        "/projects/contracts",
        "/user/me",
        "/api-keys",
        "/accounts",
        "/projections",
    ]
    .map(str::to_owned)
    .into();
    paths.push(format!("/project-configs/{PROJECT}"));
    paths.push(format!("/project-configs/{PROJECT}/versions"));
    for part in ["", "/status", "/metadata", "/executions", "/events"] {
        paths.push(format!("/sources/{source}{part}"));
    }
    for part in ["", "/status", "/summary", "/ledger-snapshot", "/observations", "/artifacts", "/events"] {
        paths.push(format!("/executions/{execution}{part}"));
    }
    for artifact in service.get(&format!("/executions/{execution}/artifacts")).await.as_array().unwrap() {
        paths.push(format!("/executions/{execution}/artifacts/{}", artifact["sha256"].as_str().unwrap()));
    }
    let mut found = vec![];
    for path in paths {
        let (status, text) = service.text(&path, "*/*").await;
        assert_eq!(status, 200, "{path}: {text}");
        found.push((path, text));
    }
    for (path, accept) in [
        ("/events?order=asc&limit=5000".to_owned(), "application/json"),
        ("/events".to_owned(), "application/x-ndjson"),
        (format!("/projects/{PROJECT}/events"), "application/x-ndjson"),
    ] {
        let (status, text) = service.text(&path, accept).await;
        assert_eq!(status, 200, "{path}: {text}");
        if path.starts_with("/events") {
            // There were secrets to leave out.
            for what in ["account.created", "api_key.issued", "session.opened", "account.password_changed"] {
                assert!(text.contains(what), "{path} has no {what}");
            }
        }
        found.push((path, text));
    }
    let reader = Reader::of(service, &service.key);
    let streamed = reader.until_caught_up("/events").await;
    assert!(streamed.contains("session.opened"));
    found.push(("the stream of /events".into(), streamed));
    let scraped = crate::backends::daliuge::http();
    let scraped = scraped.get(format!("http://127.0.0.1:{}/metrics", service.metrics_port)).send().await;
    found.push(("the listener for Prometheus".into(), scraped.unwrap().text().await.unwrap()));
    found
}

/// What the command line says of it.
fn commands(service: &Service, canaries: &Canaries) {
    for arguments in [
        &["account", "list"][..],
        &["account", "key", "list", "-o", "json"],
        &["config", "explain"],
        &["log", "verify"],
        &["projections", "list"],
        &["projections", "verify"],
        &["timeline", "project", PROJECT],
    ] {
        let done = service.command(arguments);
        assert!(done.status.success(), "{arguments:?}: {}", words(&done));
        canaries.are_not_in(&arguments.join(" "), &words(&done));
    }
    let url = format!("http://127.0.0.1:{}", service.port);
    let wrong = Command::new(env!("CARGO_BIN_EXE_beampipe"))
        .args(["source", "list"])
        .env("BEAMPIPE_URL", url)
        .env("BEAMPIPE_KEY", "canary-of-no-token")
        .output()
        .unwrap();
    assert!(!wrong.status.success());
    canaries.are_not_in("source list with a wrong key", &words(&wrong));
}

/// No raw secret is in a file of the state directory or in an export, encoded or not.
pub fn files(service: &Service, canaries: &Canaries) {
    let export = service.state_dir().join("export.ndjson");
    let done = service.command(&["log", "export", export.to_str().unwrap()]);
    assert!(done.status.success(), "{}", words(&done));
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&export).unwrap());
    assert_eq!(mode & 0o077, 0, "an export has private fields: it is for its owner");
    for line in std::fs::read_to_string(&export).unwrap().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        canaries.are_not_raw_in("a line of the export", line.to_string().as_bytes());
        let data = STANDARD.decode(line["data"].as_str().unwrap()).unwrap();
        canaries.are_not_raw_in("the data of the export", &data);
    }
    let mut count = 0;
    look_into(&service.state_dir(), &mut |path| {
        count += 1;
        let bytes = std::fs::read(path).unwrap();
        canaries.are_not_raw_in(&path.display().to_string(), &bytes);
        let text = String::from_utf8_lossy(&bytes);
        let private = path.file_name().is_some_and(|name| {
            let name = name.to_string_lossy();
            name.starts_with("accounts.sqlite")
                || name.starts_with("events.sqlite")
                || name == "export.ndjson"
        });
        if !private {
            canaries.are_not_in(&path.display().to_string(), &text);
        }
    });
    assert!(count > 5, "{count} files were looked into");
}

fn look_into(directory: &Path, each: &mut impl FnMut(&Path)) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { look_into(&path, each) } else { each(&path) }
    }
}
