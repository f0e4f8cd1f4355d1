//! The administrator's password is lost: whoever may write the files gets a new one.

use serde_json::json;

use super::service::{Service, words};

#[tokio::test]
async fn a_lost_password_is_replaced_while_the_service_is_stopped() {
    let mut service = Service::start(&[]).await;
    let refused = service.command(&["account", "recover", "admin"]);
    assert!(!refused.status.success(), "the log has a writer: {}", words(&refused));
    service.stop().await;
    let recovered = service.command(&["account", "recover", "admin"]);
    assert!(recovered.status.success(), "{}", words(&recovered));
    let said = words(&recovered);
    let password = said.split_whitespace().find(|word| word.len() == 24).unwrap_or_else(|| panic!("{said}"));
    service.start_again(&[]).await;
    let login = json!({"username": "admin", "password": password});
    let answer = service.post("/login", login).await;
    assert_eq!(answer["token_type"], "bearer");
    service.stop().await;
    let nobody = service.command(&["account", "recover", "nobody"]);
    assert!(!nobody.status.success() && words(&nobody).contains("no such account"), "{}", words(&nobody));
}
