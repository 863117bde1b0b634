//! Claims, blobs and other requests over gRPC, and what is no request.

use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use signet::proto::{self, mint_jwt_access_token_request as mint, sign_blob_request as blob};
use tonic::codegen::Bytes;
use tonic::{Code, Response, Status};
use tonic_types::StatusExt as _;

use super::{Case, Table};
use crate::signing::on_softhsm;
use crate::support::daemon::{ACCOUNT, TestDaemon, payload};

/// What a caller is told. A code that is not named is INVALID_ARGUMENT, by the reason that stands for the request itself.
fn told<T>(answer: Result<Response<T>, Status>) -> String {
    let Err(status) = answer else { return "OK".to_owned() };
    let reason = status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default();
    match (status.code(), reason.as_str()) {
        (Code::InvalidArgument, "INVALID_REQUEST") => {
            let violations = status.get_error_details().bad_request().unwrap().field_violations.clone();
            let [violation] = violations.as_slice() else { panic!("{violations:?}") };
            assert_eq!(status.message(), format!("{}: {}", violation.field, violation.description));
            status.message().to_owned()
        }
        (code, _) => format!("{code:?}: {}", status.message()),
    }
}

fn lifetime(case: &mut Case) -> Option<prost_types::Duration> {
    case.take::<(i64, i32)>("lifetime").map(|(seconds, nanos)| prost_types::Duration { seconds, nanos })
}

#[tokio::test]
async fn claims() {
    let Some((_token, daemon)) = on_softhsm().await else { return };
    let mut client = daemon.client();
    let mut table = Table::new("claims", "claims", &[("account", ACCOUNT)]);
    while let Some(mut case) = table.next() {
        let request = |claims| proto::SignJwtRequest { account: String::new(), claims };
        let answer = told(client.sign_jwt(request(case.text("claims"))).await);
        client.sign_jwt(request("{}".to_owned())).await.unwrap_or_else(|status| panic!("{}: {status}", case.name));
        table.hold(case, &answer);
    }
    table.end();
}

#[tokio::test]
async fn blobs() {
    let Some((_token, daemon)) = on_softhsm().await else { return };
    let mut client = daemon.client();
    let mut table = Table::new("requests", "blobs", &[]);
    while let Some(mut case) = table.next() {
        let digest = case.bytes("digest").map(|digest| blob::Input::Digest(digest.into()));
        let input = digest.or(case.bytes("payload").map(|payload| blob::Input::Payload(payload.into())));
        let (account, algorithm) = (case.text("account"), case.take("algorithm").unwrap_or_default());
        let answer = told(client.sign_blob(proto::SignBlobRequest { account, input, algorithm }).await);
        client.sign_blob(payload(b"good")).await.unwrap_or_else(|status| panic!("{}: {status}", case.name));
        table.hold(case, &answer);
    }
    table.end();
}

#[tokio::test]
async fn tokens() {
    let Some((_token, daemon)) = on_softhsm().await else { return };
    let mut client = daemon.client();
    let request = |target, lifetime| proto::MintJwtAccessTokenRequest { account: String::new(), target, lifetime };
    let mut table = Table::new("requests", "tokens", &[]);
    while let Some(mut case) = table.next() {
        let audience = case.fields.contains_key("audience").then(|| mint::Target::Audience(case.text("audience")));
        let scopes = case.take::<Vec<String>>("scopes").map(|scopes| {
            let scope = scopes.into_iter().map(|scope| super::expanded(scope.into_bytes(), &[]));
            mint::Target::Scopes(proto::Scopes {
                scope: scope.map(|scope| String::from_utf8(scope).unwrap()).collect(),
            })
        });
        let answer = told(client.mint_jwt_access_token(request(audience.or(scopes), lifetime(&mut case))).await);
        let good = request(Some(mint::Target::Audience("good".to_owned())), None);
        client.mint_jwt_access_token(good).await.unwrap_or_else(|status| panic!("{}: {status}", case.name));
        table.hold(case, &answer);
    }
    table.end();
}

#[tokio::test]
async fn id_tokens() {
    let Some((_token, daemon)) = on_softhsm().await else { return };
    let mut client = daemon.client();
    let request = |audience, lifetime| proto::MintIdTokenRequest {
        account: String::new(),
        audience,
        include_email: false,
        lifetime,
    };
    let mut table = Table::new("requests", "id_tokens", &[]);
    while let Some(mut case) = table.next() {
        let answer = told(client.mint_id_token(request(case.text("audience"), lifetime(&mut case))).await);
        let good = client.mint_id_token(request("good".to_owned(), None)).await;
        good.unwrap_or_else(|status| panic!("{}: {status}", case.name));
        table.hold(case, &answer);
    }
    table.end();
}

/// What these bytes are answered with, over a connection that knows HTTP/2 and nothing of gRPC.
async fn sent(send: &mut SendRequest<Full<Bytes>>, case: &mut Case) -> String {
    let or = |text: String, default: &str| if text.is_empty() { default.to_owned() } else { text };
    let path = or(case.text("path"), "/signet.v1.Signer/SignBlob");
    let mut request = hyper::Request::builder()
        .method(or(case.text("method"), "POST").as_str())
        .uri(format!("http://signet{path}"))
        .header("te", "trailers");
    let content_type = case.bytes("content_type").unwrap_or_else(|| b"application/grpc".to_vec());
    for (name, value) in [
        ("content-type", content_type),
        ("x-filling", case.bytes("header").unwrap_or_default()),
        ("grpc-encoding", case.bytes("encoding").unwrap_or_default()),
        ("grpc-timeout", case.bytes("timeout").unwrap_or_default()),
    ] {
        if !value.is_empty() {
            request = request.header(name, value);
        }
    }
    let body = Full::new(Bytes::from(case.bytes("body").unwrap()));
    let (head, body) = send.send_request(request.body(body).unwrap()).await.unwrap().into_parts();
    let trailers = body.collect().await.unwrap().trailers().cloned().unwrap_or_default();
    let status = Status::from_header_map(&head.headers).or(Status::from_header_map(&trailers));
    match status {
        Some(status) => told::<()>(Err(status)),
        None => format!("HTTP {}", head.status.as_u16()),
    }
}

async fn connected(daemon: &TestDaemon) -> SendRequest<Full<Bytes>> {
    let socket = tokio::net::UnixStream::connect(daemon.socket()).await.unwrap();
    let (send, connection) = handshake(TokioExecutor::new(), TokioIo::new(socket)).await.unwrap();
    tokio::spawn(connection);
    send
}

#[tokio::test]
async fn frames() {
    let Some((_token, daemon)) = on_softhsm().await else { return };
    let mut send = connected(&daemon).await;
    let mut table = Table::new("requests", "frames", &[]);
    while let Some(mut case) = table.next() {
        let answer = sent(&mut send, &mut case).await;
        daemon.client().sign_blob(payload(b"good")).await.unwrap_or_else(|status| panic!("{}: {status}", case.name));
        table.hold(case, &answer);
    }
    table.end();
}
