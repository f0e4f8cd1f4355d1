//! Login and logout, the caller's own account and API keys, and accounts for administrators.
//!
//! What a login with an unknown user, a wrong password and a disabled account have in common: the answer, and the time it
//! takes. Secrets are shown once, in the answer that made them.

use std::net::{IpAddr, SocketAddr};

use axum::Json;
use axum::extract::{ConnectInfo, Extension, FromRequestParts, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use beampipe_domain::account::{self, Account, Role};
use beampipe_domain::id;
use beampipe_domain::session::{self, Pair, Session};
use beampipe_projections::accounts as rows;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::Api;
use super::authenticate::Caller;
use super::extract::{Body, Id, Name, Params};
use super::layers::RequestId;
use super::problem::{FieldError, Problem};
use super::route::{Access, Route};
use crate::auth::{self, Overloaded, Purpose, Shown};
use crate::handle::Context;

pub fn routes() -> Vec<Route> {
    vec![
        Route::post("/login", Access::Open, login),
        Route::post("/refresh", Access::Open, refresh),
        Route::post("/logout", Access::Open, logout),
        Route::get("/user/me", Access::Viewer, me),
        Route::post("/user/me/password", Access::Viewer, change_my_password),
        Route::get("/api-keys", Access::Viewer, list_keys),
        Route::post("/api-keys", Access::Viewer, issue_key),
        Route::delete("/api-keys/{id}", Access::Viewer, revoke_key),
        Route::get("/accounts", Access::Admin, list_accounts),
        Route::post("/accounts", Access::Admin, create_account),
        Route::post("/accounts/{username}/disable", Access::Admin, disable_account),
        Route::post("/accounts/{username}/password", Access::Admin, set_password),
    ]
}

impl From<Overloaded> for Problem {
    fn from(error: Overloaded) -> Self {
        Self::new("overloaded", error.to_string()).retry_after(2)
    }
}

/// The address a request came from, when the server was told to keep it.
struct Peer(Option<IpAddr>);

impl<S: Send + Sync> FromRequestParts<S> for Peer {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(Self(parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip())))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Login {
    username: String,
    password: String,
}

#[derive(Serialize)]
struct Tokens {
    access_token: String,
    refresh_token: String,
    token_type: &'static str,
    /// Seconds.
    expires_in: i64,
}

fn draw_pair(api: &Api, session_id: Uuid) -> (Tokens, Pair) {
    let now = api.clock().now();
    let (access_token, access_sha256) = auth::draw(api.clock(), Purpose::Access, session_id);
    let (refresh_token, refresh_sha256) = auth::draw(api.clock(), Purpose::Refresh, session_id);
    let lifetime = api.settings.access_token_lifetime;
    let pair = Pair {
        access_sha256,
        refresh_sha256,
        access_expires_at: now + lifetime,
        refresh_expires_at: now + api.settings.refresh_token_lifetime,
    };
    (Tokens { access_token, refresh_token, token_type: "bearer", expires_in: lifetime.num_seconds() }, pair)
}

fn as_user(account_id: Uuid, request: RequestId) -> Context {
    Context { actor: format!("user:{account_id}"), correlation_id: request.0, causation_id: None }
}

async fn login(
    State(api): State<Api>,
    Extension(request): Extension<RequestId>,
    Peer(address): Peer,
    Body(login): Body<Login>,
) -> Result<Json<Tokens>, Problem> {
    if let Err(problem) = api.throttle.attempt(&login.username, address) {
        api.metrics.refused("rate_limit");
        return Err(problem);
    }
    let account = api.models.accounts().by_username(&login.username)?.filter(|account| !account.disabled);
    let known = account.as_ref().map(|account| account.password_hash.as_str());
    let password = login.password.chars().take(auth::MAX_PASSWORD).collect();
    let fits = api.passwords.fits(known, password).await?;
    let Some(account) = account.filter(|_| fits) else {
        api.metrics.refused("login");
        return Err(Problem::new("invalid-login", "user name and password do not fit"));
    };
    let session_id = api.clock().id();
    let (tokens, pair) = draw_pair(&api, session_id);
    let open = session::Command::Open(session::Opened { account_id: account.id, pair });
    let done =
        api.handle.handle::<Session>(&session_id.to_string(), &as_user(account.id, request), open).await?;
    api.settle(done.position).await;
    Ok(Json(tokens))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Refresh {
    refresh_token: String,
}

async fn refresh(
    State(api): State<Api>,
    Extension(request): Extension<RequestId>,
    Body(body): Body<Refresh>,
) -> Result<Json<Tokens>, Problem> {
    let refused = || {
        api.metrics.refused("token");
        Problem::new("invalid-token", "the refresh token is unknown, has expired or was used before")
    };
    let shown =
        Shown::read(&body.refresh_token).filter(|s| s.purpose == Purpose::Refresh).ok_or_else(refused)?;
    api.settle(api.handle.log().head().position).await;
    let accounts = api.models.accounts();
    let session = accounts.session(shown.id)?.ok_or_else(refused)?;
    if accounts.get(session.account_id)?.is_none_or(|account| account.disabled) {
        return Err(refused());
    }
    let (tokens, pair) = draw_pair(&api, shown.id);
    let rotate = session::Command::Rotate { shown_sha256: shown.sha256, now: api.clock().now(), pair };
    let context = as_user(session.account_id, request);
    let done = api.handle.handle::<Session>(&shown.id.to_string(), &context, rotate).await?;
    api.settle(done.position).await;
    api.access.changed(done.position);
    if matches!(done.state, Session::Closed) {
        api.metrics.refused("refresh_reuse");
        return Err(Problem::new(
            "session-closed",
            "this refresh token was used before, so somebody else may have it; the session is closed, log in again",
        ));
    }
    Ok(Json(tokens))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Logout {
    access_token: Option<String>,
    refresh_token: Option<String>,
}

async fn logout(
    State(api): State<Api>,
    Extension(request): Extension<RequestId>,
    Body(body): Body<Logout>,
) -> Result<StatusCode, Problem> {
    for token in [body.access_token, body.refresh_token].into_iter().flatten() {
        let Some(shown) = Shown::read(&token) else { continue };
        let Some(session) = api.models.accounts().session(shown.id)? else { continue };
        let known = match shown.purpose {
            Purpose::Access => &session.access_sha256,
            Purpose::Refresh => &session.refresh_sha256,
            Purpose::Key => continue,
        };
        if shown.is(known) {
            close(&api, &as_user(session.account_id, request), shown.id, "logged out").await?;
        }
    }
    Ok(StatusCode::NO_CONTENT)
}

async fn close(api: &Api, context: &Context, session_id: Uuid, reason: &str) -> Result<(), Problem> {
    let close = session::Command::Close { reason: reason.to_owned() };
    let done = api.handle.handle::<Session>(&session_id.to_string(), context, close).await?;
    api.settle(done.position).await;
    api.access.changed(done.position);
    Ok(())
}

fn shape_account(account: &rows::Account) -> Value {
    json!({
        "uuid": account.id,
        "name": account.name,
        "username": account.username,
        "email": account.email,
        "role": account.role,
        "is_superuser": account.role == Role::Admin,
        "disabled": account.disabled,
        "disabled_reason": account.disabled_reason,
        "created_at": account.created_at,
        "updated_at": account.updated_at,
        "profile_image_url": null,
    })
}

async fn me(State(api): State<Api>, caller: Caller, params: Params) -> Result<Json<Value>, Problem> {
    params.finish()?;
    let account = api.models.accounts().get(caller.principal.account_id)?;
    let account = account.ok_or_else(|| Problem::new("account-unknown", "the account is gone"))?;
    let mut shape = shape_account(&account);
    // What this very token may do.
    shape["effective_role"] = json!(caller.principal.role);
    Ok(Json(shape))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PasswordChange {
    current_password: String,
    new_password: String,
}

fn check_password(field: &str, password: &str) -> Result<(), Problem> {
    match auth::unfit_password(password) {
        None => Ok(()),
        Some(message) => {
            Err(Problem::fields("invalid-body", vec![FieldError::new(field, message.clone()).hint(message)]))
        }
    }
}

async fn change_my_password(
    State(api): State<Api>,
    caller: Caller,
    Body(body): Body<PasswordChange>,
) -> Result<StatusCode, Problem> {
    check_password("new_password", &body.new_password)?;
    api.throttle.attempt(&caller.principal.username, None)?;
    let account = api.models.accounts().get(caller.principal.account_id)?;
    let known = account.as_ref().map(|account| account.password_hash.as_str());
    if !api.passwords.fits(known, body.current_password).await? {
        api.metrics.refused("login");
        return Err(Problem::field(
            "invalid-body",
            "current_password",
            "does not fit",
            "the password that is valid now",
        ));
    }
    replace_password(&api, &caller, caller.principal.account_id, body.new_password).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Sets a password and closes every other session of the account.
async fn replace_password(
    api: &Api,
    caller: &Caller,
    account_id: Uuid,
    password: String,
) -> Result<(), Problem> {
    let password_hash = api.passwords.hash(api.clock(), password).await?;
    let change = account::Command::ChangePassword { password_hash };
    let done = api.handle.handle::<Account>(&account_id.to_string(), &caller.context(), change).await?;
    api.settle(done.position).await;
    for session in api.models.accounts().open_sessions(account_id)? {
        if caller.principal.session_id != Some(session.id) {
            close(api, &caller.context(), session.id, "the password was changed").await?;
        }
    }
    api.access.changed(done.position);
    Ok(())
}

fn shape_key(key: &rows::ApiKey) -> Value {
    json!({
        "uuid": key.id,
        "name": key.name,
        "scope": key.scope,
        "expires_at": key.expires_at,
        "created_at": key.issued_at,
        "revoked_at": key.revoked_at,
    })
}

async fn list_keys(
    State(api): State<Api>,
    caller: Caller,
    mut params: Params,
) -> Result<Json<Vec<Value>>, Problem> {
    let (limit, offset) = params.window(1000, 1000);
    params.finish()?;
    let account = caller.principal.account_id;
    let keys = api.read(move |models| models.accounts().api_keys(account)).await?;
    let window = keys.iter().skip(usize_of(offset)).take(usize_of(limit));
    Ok(Json(window.map(shape_key).collect()))
}

fn usize_of(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyOrder {
    name: String,
    scope: Option<Role>,
    expires_at: Option<DateTime<Utc>>,
}

async fn issue_key(
    State(api): State<Api>,
    caller: Caller,
    Body(order): Body<KeyOrder>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let mut errors = vec![];
    if order.name.trim().is_empty() || order.name.chars().count() > 100 {
        errors.push(FieldError::new("name", "has the wrong length").hint("1 to 100 characters"));
    }
    let now = api.clock().now();
    if order.expires_at.is_some_and(|expiry| expiry <= now) {
        errors.push(FieldError::new("expires_at", "is in the past").hint("a time to come, or null"));
    }
    let scope = order.scope.unwrap_or(caller.principal.role);
    if scope > caller.principal.role {
        let most = caller.principal.role;
        errors.push(FieldError::new("scope", "is more than the caller's").hint(format!("at most {most}")));
    }
    // A key that ends cannot make one that does not.
    if let (Some(_), Some(end)) = (caller.principal.key_id, caller.principal.expires_at)
        && order.expires_at.is_none_or(|expiry| expiry > end)
    {
        let hint = format!("at most {end}, when the key that asks expires");
        errors.push(FieldError::new("expires_at", "is later than the caller's").hint(hint));
    }
    if !errors.is_empty() {
        return Err(Problem::fields("invalid-body", errors));
    }
    let key_id = caller.creates("/api-keys", &api);
    let (token, secret_sha256) = auth::draw(api.clock(), Purpose::Key, key_id);
    let issue = account::Command::IssueKey(account::KeyIssued {
        key_id,
        name: order.name,
        scope,
        expires_at: order.expires_at,
        secret_sha256,
    });
    let account = caller.principal.account_id.to_string();
    let done = api.handle.handle::<Account>(&account, &caller.context(), issue).await?;
    api.settle(done.position).await;
    let key = api.models.accounts().api_key(key_id)?;
    let mut shape = key.as_ref().map_or_else(|| json!({ "uuid": key_id }), shape_key);
    // Asked again after a restart, the key is known and its secret is not: secrets are kept nowhere.
    shape["api_key"] = if done.events.is_empty() { Value::Null } else { json!(token) };
    let status = if done.events.is_empty() { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, Json(shape)))
}

async fn revoke_key(State(api): State<Api>, caller: Caller, Id(key_id): Id) -> Result<StatusCode, Problem> {
    let unknown = || Problem::new("key-unknown", format!("the account has no API key {key_id}"));
    let key = api.models.accounts().api_key(key_id)?.ok_or_else(unknown)?;
    if key.account_id != caller.principal.account_id && caller.principal.role < Role::Admin {
        return Err(unknown());
    }
    let revoke = account::Command::RevokeKey { key_id };
    let done = api.handle.handle::<Account>(&key.account_id.to_string(), &caller.context(), revoke).await?;
    api.settle(done.position).await;
    api.access.changed(done.position);
    Ok(StatusCode::NO_CONTENT)
}

async fn list_accounts(State(api): State<Api>, mut params: Params) -> Result<Json<Vec<Value>>, Problem> {
    let (limit, offset) = params.window(1000, 1000);
    params.finish()?;
    let accounts = api.read(|models| models.accounts().list()).await?;
    Ok(Json(accounts.iter().skip(usize_of(offset)).take(usize_of(limit)).map(shape_account).collect()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AccountOrder {
    username: String,
    name: Option<String>,
    email: Option<String>,
    role: Option<Role>,
    password: Option<String>,
}

/// What a user name may be.
pub fn is_username(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'@'))
}

async fn create_account(
    State(api): State<Api>,
    caller: Caller,
    Body(order): Body<AccountOrder>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let mut errors = vec![];
    if !is_username(&order.username) {
        errors.push(
            FieldError::new("username", "cannot be used").hint("1 to 64 letters, digits and . _ - @ (ASCII)"),
        );
    }
    if let Some(message) = order.password.as_deref().and_then(auth::unfit_password) {
        errors.push(FieldError::new("password", message));
    }
    if order.email.as_ref().is_some_and(|email| !email.contains('@') || email.len() > 254) {
        errors.push(FieldError::new("email", "is not an address").hint("name@host, or null"));
    }
    if !errors.is_empty() {
        return Err(Problem::fields("invalid-body", errors));
    }
    let drawn = order.password.is_none();
    let password = order.password.unwrap_or_else(|| auth::draw_password(api.clock()));
    let password_hash = api.passwords.hash(api.clock(), password.clone()).await?;
    let account_id = id::account(&order.username);
    let create = account::Command::Create(account::Created {
        name: order.name.unwrap_or_else(|| order.username.clone()),
        username: order.username,
        email: order.email.unwrap_or_default(),
        role: order.role.unwrap_or_default(),
        password_hash,
    });
    let done = api.handle.handle::<Account>(&account_id.to_string(), &caller.context(), create).await?;
    api.settle(done.position).await;
    let account = api.models.accounts().get(account_id)?;
    let mut shape = account.as_ref().map_or_else(|| json!({ "uuid": account_id }), shape_account);
    if drawn {
        shape["one_time_password"] = json!(password);
    }
    Ok((StatusCode::CREATED, Json(shape)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Disable {
    reason: Option<String>,
}

/// The account of a name, if the log has it.
async fn known(api: &Api, username: &str) -> Result<Uuid, Problem> {
    let account_id = id::account(username);
    match api.handle.load::<Account>(&account_id.to_string()).await?.head {
        Some(_) => Ok(account_id),
        None => Err(Problem::new("account-unknown", format!("there is no account {username:?}"))),
    }
}

async fn disable_account(
    State(api): State<Api>,
    caller: Caller,
    Name(username): Name,
    Body(body): Body<Disable>,
) -> Result<Json<Value>, Problem> {
    let account_id = known(&api, &username).await?;
    if account_id == caller.principal.account_id {
        return Err(Problem::field(
            "invalid-body",
            "username",
            "an account cannot disable itself",
            "ask another administrator",
        ));
    }
    let disable = account::Command::Disable { reason: body.reason.unwrap_or_default() };
    let done = api.handle.handle::<Account>(&account_id.to_string(), &caller.context(), disable).await?;
    api.settle(done.position).await;
    api.access.changed(done.position);
    let account = api.models.accounts().get(account_id)?;
    Ok(Json(account.as_ref().map_or_else(|| json!({ "uuid": account_id }), shape_account)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewPassword {
    password: Option<String>,
}

async fn set_password(
    State(api): State<Api>,
    caller: Caller,
    Name(username): Name,
    Body(body): Body<NewPassword>,
) -> Result<Json<Value>, Problem> {
    let account_id = known(&api, &username).await?;
    if let Some(password) = &body.password {
        check_password("password", password)?;
    }
    let drawn = body.password.is_none();
    let password = body.password.unwrap_or_else(|| auth::draw_password(api.clock()));
    replace_password(&api, &caller, account_id, password.clone()).await?;
    let mut answer = json!({ "uuid": account_id, "username": username });
    if drawn {
        answer["one_time_password"] = json!(password);
    }
    Ok(Json(answer))
}
