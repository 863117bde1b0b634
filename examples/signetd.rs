//! Calls signetd from Rust, as signetctl does: tonic's client of `proto/signet/v1/signer.proto`.
//!
//!     cargo run --example signetd -- /run/signet/signet.sock https://pubsub.googleapis.com/
//!
//! In a crate of your own, have tonic-prost-build compile that file; it needs nothing else of Signet.

#![allow(clippy::print_stdout, reason = "it is what the example is for")]

use signet::proto::mint_jwt_access_token_request::Target;
use signet::proto::signer_client::SignerClient;
use signet::proto::{GetAccountRequest, MintJwtAccessTokenRequest};
use tonic::transport::Endpoint;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(socket), Some(audience)) = (arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: signetd SOCKET AUDIENCE");
    };
    let channel = Endpoint::from_shared(format!("unix:{socket}"))?.connect().await?;
    let mut client = SignerClient::new(channel);
    // An empty account is the default one.
    let account = client.get_account(GetAccountRequest { account: String::new() }).await?.into_inner();
    let target = Some(Target::Audience(audience));
    let request = MintJwtAccessTokenRequest { account: account.email, target, lifetime: None };
    let minted = client.mint_jwt_access_token(request).await?.into_inner();
    println!("{}", minted.access_token);
    Ok(())
}
