//! The admin listener: health. What `/metrics` says is tested in `metrics.rs`.

use crate::support::Gateway;

#[tokio::test]
async fn health_is_served_on_the_admin_listener_alone() {
    let gateway = Gateway::start(&[]).await;
    assert_eq!(gateway.admin_get("/livez").await, (200, "alive\n".into()));
    let ready = r#"{"ready":true,"reasons":[]}"#;
    assert_eq!(gateway.admin_get("/readyz").await, (200, ready.into()));
    // Whoever types the address alone means the console.
    let console = gateway.admin_get("/console").await;
    assert_eq!((console.0, gateway.admin_get("/").await), (200, console));
    // The data listener serves none of it.
    assert_eq!(gateway.get("/metrics").await.0, 404);
    assert_eq!(gateway.get("/readyz").await.0, 404);
}
