//! Errors as google.rpc statuses; health and reflection.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::proto;
use crate::signer::SignError;

/// A refusal as the caller sees it: a code, a text, and google.rpc.ErrorInfo with the stable reason.
pub(super) fn of(error: &SignError) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(error.reason(), "signet", HashMap::new());
    if let Some(retry_after) = error.retry_after() {
        details.set_retry_info(Some(retry_after));
    }
    let code = match error {
        SignError::Denied => Code::PermissionDenied,
        SignError::Invalid { field, problem } => {
            details.add_bad_request_violation(*field, problem);
            Code::InvalidArgument
        }
        SignError::Busy { .. } | SignError::RateLimited { .. } | SignError::TooMuch => Code::ResourceExhausted,
        SignError::Away(_) | SignError::EndpointAway => Code::Unavailable,
        SignError::Late => Code::DeadlineExceeded,
        SignError::Operator { .. } => Code::FailedPrecondition,
        SignError::Withheld => Code::Internal,
    };
    Status::with_error_details(code, error.to_string(), details)
}

impl From<SignError> for Status {
    fn from(error: SignError) -> Self {
        of(&error)
    }
}

/// The health service: "" and each service that signs tell whether any account can sign now.
#[derive(Clone, Debug)]
pub struct Readiness(HealthReporter);

impl Readiness {
    /// Not serving yet.
    pub async fn new() -> Self {
        let health = Self(HealthReporter::new());
        health.set(false).await;
        health
    }

    /// Tells whether any account can sign now.
    pub async fn set(&self, can_sign: bool) {
        let status = if can_sign { ServingStatus::Serving } else { ServingStatus::NotServing };
        let signing = [proto::signer_server::SERVICE_NAME, proto::iam::iam_credentials_server::SERVICE_NAME];
        for service in signing.into_iter().chain([""]) {
            self.0.set_service_status(service, status).await;
        }
    }

    pub(super) fn service(&self) -> HealthServer<HealthService> {
        HealthServer::new(HealthService::from_health_reporter(self.0.clone()))
    }
}

/// Server reflection of all that is served.
pub(super) fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}
