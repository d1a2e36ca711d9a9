//! Each role with each method.

use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_request::MessageRequest,
};

use super::*;

const ROLES: [&str; 4] = ["probe", "reader", "bot", "admin"];

/// The least role of a method. A new method is decided here, and in `src/grpc/access.rs`.
fn least(method: &str) -> &'static str {
    match method {
        "GetServerInfo" | "IsProcessed" | "CheckSessionLease" | "GetSession" | "ListSessions"
        | "ListEvents" | "GetStats" => "reader",
        "MarkProcessed"
        | "BatchMarkProcessed"
        | "AcquireSessionLease"
        | "HoldSessionLease"
        | "RenewSessionLease"
        | "ReleaseSessionLease"
        | "BeginTurn"
        | "RenewTurn"
        | "FinishTurn"
        | "RunTurn" => "bot",
        "Cleanup" | "BindEpic" | "ForceReleaseSessionLease" | "CloseSession" | "ForgetEvent" => {
            "admin"
        }
        method => panic!("which roles may call {method}?"),
    }
}

fn rank(role: &str) -> usize {
    ROLES.iter().position(|known| *known == role).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_role_calls_what_it_may() {
    let tokens = ROLES.map(|role| (role, new_token()));
    let file: String = tokens.iter().map(|(role, t)| principal(role, role, &["*"], &[t])).collect();
    let server = Guarded::start(&file).await;
    let mut raw = Raw::connect(server.address()).await;
    for method in methods() {
        let (path, empty) = (path(&method), DynamicMessage::new(method.input()));
        for (role, token) in &tokens {
            let status = call(&mut raw, &path, Some(&format!("Bearer {token}")), &empty).await;
            let is_denied = reason(&status) == "ROLE_DENIED";
            assert_eq!(is_denied, status.code() == Code::PermissionDenied, "{path}: {status:?}");
            assert_eq!(is_denied, rank(role) < rank(least(method.name())), "{role} {path}");
        }
        is_unauthenticated(&call(&mut raw, &path, None, &empty).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_for_everybody_and_reflection_is_not() {
    let (probe, reader) = (new_token(), new_token());
    let file =
        principal("p", "probe", &["*"], &[&probe]) + &principal("r", "reader", &["*"], &[&reader]);
    let server = Guarded::start(&file).await;
    let mut raw = Raw::connect(server.address()).await;
    let unknown = format!("Bearer {}", new_token());
    for authorization in [None, Some("Basic x"), Some(unknown.as_str())] {
        let metadata: Vec<_> =
            authorization.map(|value| ("authorization", value)).into_iter().collect();
        let mut call = raw.begin("/grpc.health.v1.Health/Check", &metadata).await;
        call.send(framed(&()), true);
        assert_eq!(call.status().await.code(), Code::Ok, "{authorization:?}");
    }
    for version in ["v1", "v1alpha"] {
        let path = format!("/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo");
        for (token, code) in [(&probe, Code::PermissionDenied), (&reader, Code::Ok)] {
            let authorization = format!("Bearer {token}");
            let mut call = raw.begin(&path, &[("authorization", authorization.as_str())]).await;
            let list = MessageRequest::ListServices(String::new());
            let list =
                ServerReflectionRequest { message_request: Some(list), ..Default::default() };
            call.send(framed(&list), true);
            assert_eq!(call.status().await.code(), code, "{path}");
        }
    }
    let mut call = raw.begin("/oncegate.v1.NoService/None", &[]).await;
    call.send(framed(&()), true);
    is_unauthenticated(&call.status().await);
}
