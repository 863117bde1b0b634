//! Application default credentials, unchanged: what every Google crate does by itself.
//!
//!     eval "$(signetctl env)"
//!     cargo run --bin adc -- https://pubsub.googleapis.com/v1/projects/PROJECT/topics

use std::error::Error;

use google_cloud_auth::credentials::{Builder, CacheableResource};
use http::Extensions;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    rustls::crypto::ring::default_provider().install_default().map_err(|_| "TLS is chosen already")?;
    let url = std::env::args().nth(1).ok_or("usage: adc URL")?;
    let credentials = Builder::default().with_scopes(["https://www.googleapis.com/auth/cloud-platform"]).build()?;
    let CacheableResource::New { data: headers, .. } = credentials.headers(Extensions::new()).await? else {
        return Err("the library holds that a first answer was seen before".into());
    };
    let response = reqwest::Client::new().get(url).headers(headers).send().await?;
    println!("{}", response.error_for_status()?.text().await?);
    Ok(())
}
