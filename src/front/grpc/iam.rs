//! The service `google.iam.credentials.v1.IAMCredentials`, as Google's own client libraries call it: decode, call, encode.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::super::iam::{account, in_googles_words};
use super::rpc::{Asked, SignedJwt, lifetime};
use crate::jwt::Target;
use crate::proto::iam as proto;
use crate::signer::{Bytes, JwtBody, Signer};

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
