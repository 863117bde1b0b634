//! The service `signet.v1.Signer`: decode, call, encode. No request is ever printed: it may hold claims.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tonic::{Request, Response, Status};

use super::rpc::{Asked, SignedJwt, lifetime, peer};
use crate::jwt::Target;
use crate::jwt::certificate::validity;
use crate::jwt::jwk::jwks;
use crate::key;
use crate::proto::{self, mint_jwt_access_token_request as mint, sign_blob_request as blob};
use crate::signer::{
    self, Bytes, DeviceState, DeviceStatus, JwtBody, Key, KeyState, SignError, Signed, Signer, Source,
};

pub(super) struct Service {
    pub(super) signer: Arc<Signer>,
    pub(super) cache_time: Duration,
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl proto::signer_server::Signer for Service {
    async fn sign_blob(&self, request: Request<proto::SignBlobRequest>) -> Answer<proto::SignBlobResponse> {
        let asked = Asked::new("SignBlob", request)?;
        let signed = asked.sign_bytes(&self.signer, |message| {
            let algorithm = algorithm_of(message.algorithm)?;
            let bytes = match message.input.as_ref() {
                Some(blob::Input::Payload(bytes)) => Bytes::Message(bytes),
                Some(blob::Input::Digest(digest)) => Bytes::Digest(digest),
                None => return Err(SignError::invalid("input", "payload or digest is needed")),
            };
            Ok((&message.account, bytes, algorithm))
        });
        let Signed { kid, algorithm, value } = signed.await?;
        let signature = value.into_bytes().into();
        let algorithm = proto::Algorithm::from(algorithm).into();
        Ok(Response::new(proto::SignBlobResponse { key_id: kid.into(), signature, algorithm }))
    }

    async fn sign_jwt(&self, request: Request<proto::SignJwtRequest>) -> Answer<proto::SignJwtResponse> {
        let asked = Asked::new("SignJwt", request)?;
        let signed =
            asked.sign_jwt(&self.signer, |message| Ok((&message.account, JwtBody::Claims(message.claims.clone()))));
        let SignedJwt { key_id, jwt, expire_time } = signed.await?;
        Ok(Response::new(proto::SignJwtResponse { key_id, jwt, expire_time }))
    }

    async fn mint_jwt_access_token(
        &self,
        request: Request<proto::MintJwtAccessTokenRequest>,
    ) -> Answer<proto::MintJwtAccessTokenResponse> {
        let asked = Asked::new("MintJwtAccessToken", request)?;
        let signed = asked.sign_jwt(&self.signer, |message| {
            let target = match message.target.clone() {
                Some(mint::Target::Audience(audience)) => Target::Audience(audience),
                Some(mint::Target::Scopes(scopes)) => Target::Scopes(scopes.scope),
                None => return Err(SignError::invalid("target", "audience or scopes are needed")),
            };
            let lifetime = lifetime(message.lifetime)?;
            Ok((&message.account, JwtBody::AccessToken { target, lifetime }))
        });
        let SignedJwt { key_id, jwt: access_token, expire_time } = signed.await?;
        let token_type = "Bearer".to_owned();
        Ok(Response::new(proto::MintJwtAccessTokenResponse { access_token, token_type, expire_time, key_id }))
    }

    async fn mint_id_token(&self, request: Request<proto::MintIdTokenRequest>) -> Answer<proto::MintIdTokenResponse> {
        let asked = Asked::new("MintIdToken", request)?;
        let signed = asked.sign_jwt(&self.signer, |message| {
            let (audience, include_email) = (message.audience.clone(), message.include_email);
            let lifetime = lifetime(message.lifetime)?;
            Ok((&message.account, JwtBody::IdToken { audience, include_email, lifetime }))
        });
        let SignedJwt { key_id, jwt: id_token, expire_time } = signed.await?;
        Ok(Response::new(proto::MintIdTokenResponse { id_token, expire_time, key_id }))
    }

    async fn get_public_certificates(
        &self,
        request: Request<proto::GetPublicCertificatesRequest>,
    ) -> Answer<proto::GetPublicCertificatesResponse> {
        let keys = self.signer.published(&request.into_inner().account)?;
        let published: Vec<_> = keys.iter().map(|key| key.published()).collect();
        Ok(Response::new(proto::GetPublicCertificatesResponse {
            certificates: keys.iter().map(|key| certificate(key)).collect(),
            max_client_cache_time: prost_types::Duration::try_from(self.cache_time).ok(),
            jwks: jwks(&published),
        }))
    }

    async fn get_account(&self, request: Request<proto::GetAccountRequest>) -> Answer<proto::GetAccountResponse> {
        let asked = Asked::new("GetAccount", request)?;
        let (account, key) = asked.account(&self.signer, |message| &message.account).await?;
        Ok(Response::new(proto::GetAccountResponse {
            email: account.email.into(),
            project_id: account.project_id.unwrap_or_default(),
            key_id: key.kid().to_string(),
            algorithm: proto::Algorithm::from(key.algorithm()).into(),
        }))
    }

    async fn get_status(&self, request: Request<proto::GetStatusRequest>) -> Answer<proto::GetStatusResponse> {
        let signer::Status { serving, trouble, http_trouble, devices, source } =
            self.signer.status(&peer(&request)?.caller);
        let (cause, remedy) = trouble.unwrap_or_default();
        let (http_cause, http_remedy) = http_trouble.unwrap_or_default();
        let Source { sha256, wants_restart } = source.map(|source| (*source).clone()).unwrap_or_default();
        Ok(Response::new(proto::GetStatusResponse {
            serving,
            cause,
            remedy: remedy.into(),
            devices: devices.into_iter().map(device).collect(),
            config_sha256: sha256,
            wants_restart,
            http_cause,
            http_remedy: http_remedy.into(),
        }))
    }
}

fn device(status: DeviceStatus) -> proto::DeviceStatus {
    let state = match status.state {
        DeviceState::Starting => proto::DeviceState::Starting,
        DeviceState::Ready => proto::DeviceState::Ready,
        DeviceState::Down => proto::DeviceState::Down,
    };
    let (cause, remedy) = status.trouble.unwrap_or_default();
    proto::DeviceStatus { name: status.name.into(), state: state.into(), cause, remedy }
}

fn algorithm_of(algorithm: i32) -> Result<Option<key::Algorithm>, SignError> {
    let known =
        proto::Algorithm::try_from(algorithm).map_err(|_unknown| SignError::invalid("algorithm", "it is not known"))?;
    Ok(match known {
        proto::Algorithm::Unspecified => None,
        proto::Algorithm::Rs256 => Some(key::Algorithm::Rs256),
        proto::Algorithm::Rs384 => Some(key::Algorithm::Rs384),
        proto::Algorithm::Rs512 => Some(key::Algorithm::Rs512),
        proto::Algorithm::Ps256 => Some(key::Algorithm::Ps256),
        proto::Algorithm::Es256 => Some(key::Algorithm::Es256),
    })
}

fn certificate(key: &Key) -> proto::PublicCertificate {
    let pem = key.certificate().unwrap_or_default();
    let dates = validity(pem).ok();
    let state = match key.state() {
        KeyState::Prepared => proto::KeyState::Prepared,
        KeyState::Active => proto::KeyState::Active,
        KeyState::Retired => proto::KeyState::Retired,
    };
    let timestamp = |time: SystemTime| prost_types::Timestamp::from(time);
    proto::PublicCertificate {
        key_id: key.kid().to_string(),
        x509_pem: pem.to_owned(),
        state: state.into(),
        not_before: dates.map(|(not_before, _)| timestamp(not_before)),
        not_after: dates.map(|(_, not_after)| timestamp(not_after)),
    }
}
