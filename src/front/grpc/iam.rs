//! The service `google.iam.credentials.v1.IAMCredentials`, as Google's own client libraries call it: decode, call, encode.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::rpc::{Asked, SignedJwt, invalid, lifetime};
use crate::access::{AccountEmail, UniqueId};
use crate::jwt::Target;
use crate::proto::iam as proto;
use crate::signer::{Bytes, JwtBody, SignError, Signer};

pub(super) struct Service {
    pub(super) signer: Arc<Signer>,
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl proto::iam_credentials_server::IamCredentials for Service {
    async fn generate_access_token(
        &self,
        request: Request<proto::GenerateAccessTokenRequest>,
    ) -> Answer<proto::GenerateAccessTokenResponse> {
        let asked = Asked::new("IAMCredentials/GenerateAccessToken", request)?;
        let signed = asked.sign_jwt(&self.signer, |message| {
            let account = account(&message.name, &message.delegates)?;
            let (target, lifetime) = (Target::Scopes(message.scope.clone()), lifetime(message.lifetime)?);
            Ok((account, JwtBody::AccessToken { target, lifetime }))
        });
        let SignedJwt { jwt: access_token, expire_time, .. } = signed.await.map_err(in_googles_words)?;
        Ok(Response::new(proto::GenerateAccessTokenResponse { access_token, expire_time }))
    }

    async fn generate_id_token(
        &self,
        request: Request<proto::GenerateIdTokenRequest>,
    ) -> Answer<proto::GenerateIdTokenResponse> {
        let asked = Asked::new("IAMCredentials/GenerateIdToken", request)?;
        let signed = asked.sign_jwt(&self.signer, |message| {
            let account = account(&message.name, &message.delegates)?;
            let (audience, include_email) = (message.audience.clone(), message.include_email);
            Ok((account, JwtBody::IdToken { audience, include_email, lifetime: None }))
        });
        let token = signed.await.map_err(in_googles_words)?.jwt;
        Ok(Response::new(proto::GenerateIdTokenResponse { token }))
    }

    async fn sign_blob(&self, request: Request<proto::SignBlobRequest>) -> Answer<proto::SignBlobResponse> {
        let asked = Asked::new("IAMCredentials/SignBlob", request)?;
        let signed = asked.sign_bytes(&self.signer, |message| {
            Ok((account(&message.name, &message.delegates)?, Bytes::Message(&message.payload), None))
        });
        let signed = signed.await.map_err(in_googles_words)?;
        let (key_id, signed_blob) = (signed.kid.into(), signed.value.into_bytes().into());
        Ok(Response::new(proto::SignBlobResponse { key_id, signed_blob }))
    }

    async fn sign_jwt(&self, request: Request<proto::SignJwtRequest>) -> Answer<proto::SignJwtResponse> {
        let asked = Asked::new("IAMCredentials/SignJwt", request)?;
        let signed = asked.sign_jwt(&self.signer, |message| {
            Ok((account(&message.name, &message.delegates)?, JwtBody::Claims(message.payload.clone())))
        });
        let SignedJwt { key_id, jwt: signed_jwt, .. } = signed.await.map_err(in_googles_words)?;
        Ok(Response::new(proto::SignJwtResponse { key_id, signed_jwt }))
    }
}

/// The account of a resource name, for a caller who acts for nobody else.
fn account<'a>(name: &'a str, delegates: &[String]) -> Result<&'a str, SignError> {
    if !delegates.is_empty() {
        return Err(invalid("delegates", "nobody can act for somebody else here: leave them out"));
    }
    let account = name.strip_prefix("projects/-/serviceAccounts/");
    account
        .filter(|account| account.parse::<AccountEmail>().is_ok() || account.parse::<UniqueId>().is_ok())
        .ok_or_else(|| invalid("name", "write projects/-/serviceAccounts/ and the account's email or unique id"))
}

/// Fields by the names that they have in this service.
fn in_googles_words(error: SignError) -> SignError {
    let SignError::Invalid { field, problem } = error else { return error };
    let field = match field {
        "scopes" => "scope",
        "claims" => "payload",
        other => other,
    };
    SignError::Invalid { field, problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_of_any_project_and_an_account() {
        let named = |name: &str| account(name, &[]).map(str::to_owned).map_err(|error| error.to_string());
        assert_eq!(named("projects/-/serviceAccounts/a@p.example"), Ok("a@p.example".to_owned()));
        assert_eq!(named("projects/-/serviceAccounts/104"), Ok("104".to_owned()));
        for name in [
            "",
            "a@p.example",
            "projects/p/serviceAccounts/a@p.example",
            "projects/-/serviceAccounts/",
            "projects/-/serviceAccounts/default",
            "projects/-/serviceAccounts/a@p.example/keys/1",
            "projects/-/serviceAccounts/-",
            "/projects/-/serviceAccounts/a@p.example",
        ] {
            assert!(named(name).is_err_and(|error| error.starts_with("name: ")), "{name}");
        }
        let delegated = account("projects/-/serviceAccounts/a@p.example", &["x".to_owned()]).unwrap_err();
        assert!(delegated.to_string().starts_with("delegates: "));
    }
}
