//! Why nothing was signed, by what the caller does about it.

use std::time::Duration;

use crate::device::DeviceError;

/// Why nothing was signed. The text is for the caller; [`SignError::reason`] is for programs and never changes.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum SignError {
    /// No rule allows it, or there is no such account: a caller can't tell which. Another request, or an operator, helps.
    #[error("not allowed: no rule of signetd's configuration lets this user do this with this account")]
    Denied,
    /// The request can't be served as it is. Another request helps.
    #[error("{field}: {problem}")]
    Invalid {
        /// The field of the request.
        field: &'static str,
        /// What is wrong with it; never what stands in it.
        problem: String,
    },
    /// Too much is waiting, or the deadline is nearer than the wait. A retry helps, later.
    #[error("too many requests are waiting for the device")]
    Busy {
        /// When to retry.
        retry_after: Duration,
    },
    /// The rule that allows it has a rate, and the caller's user has used it up. A retry helps, later.
    #[error("too many requests of this user: the rule that allows it has a rate")]
    RateLimited {
        /// When to retry.
        retry_after: Duration,
    },
    /// As many bytes of requests and answers of the caller's user are in memory as there may be. A retry helps, later.
    #[error("too many bytes of this user's requests at once: send fewer large ones side by side")]
    TooMuch,
    /// The device is away. A retry helps once it is back, which needs nobody.
    #[error("{0}")]
    Away(String),
    /// The account's token endpoint can't be reached, or fails. A retry helps once it is back.
    #[error("the account's token endpoint can't be reached, or fails")]
    EndpointAway,
    /// The device did not answer before the deadline. A retry may help.
    #[error("the deadline passed before the device answered")]
    Late,
    /// Only an operator can help.
    #[error("{problem}")]
    Operator {
        /// The stable reason.
        reason: &'static str,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// What the device returned did not verify and was withheld. The daemon's log says more.
    #[error("the device answered wrongly; the signature was withheld")]
    Withheld,
}

impl SignError {
    /// The stable reason: `google.rpc.ErrorInfo.reason`, and the outcome in the audit log.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Denied => "NOT_ALLOWED",
            Self::Invalid { .. } => "INVALID_REQUEST",
            Self::Busy { .. } => "DEVICE_BUSY",
            Self::RateLimited { .. } => "RATE_LIMITED",
            Self::TooMuch => "TOO_MUCH_AT_ONCE",
            Self::Away(_) => "DEVICE_AWAY",
            Self::EndpointAway => "TOKEN_ENDPOINT_AWAY",
            Self::Late => "DEADLINE_EXCEEDED",
            Self::Operator { reason, .. } => reason,
            Self::Withheld => "SIGNATURE_WITHHELD",
        }
    }

    /// When a retry helps, where one does.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy { retry_after } | Self::RateLimited { retry_after } => Some(*retry_after),
            Self::TooMuch => Some(ROOM),
            Self::Away(_) | Self::EndpointAway => Some(AWAY),
            _ => None,
        }
    }

    /// Whether another device might do better.
    pub(super) const fn is_of_one_device(&self) -> bool {
        matches!(self, Self::Away(_) | Self::Operator { .. } | Self::Withheld)
    }

    pub(super) fn no_key() -> Self {
        let problem = "the account has no active key (signetctl key generate or key import makes one)".to_owned();
        Self::Operator { reason: "NO_ACTIVE_KEY", problem }
    }

    pub(crate) fn invalid(field: &'static str, problem: impl ToString) -> Self {
        Self::Invalid { field, problem: problem.to_string() }
    }
}

impl From<DeviceError> for SignError {
    fn from(error: DeviceError) -> Self {
        let problem = error.to_string();
        match error {
            DeviceError::Transient(_) | DeviceError::Away(_) => Self::Away(problem),
            DeviceError::PinRefused(_) => Self::Operator { reason: "PIN_REFUSED", problem },
            DeviceError::Permanent(_) => Self::Operator { reason: "KEY_UNUSABLE", problem },
            DeviceError::Misconfigured(_) => Self::Operator { reason: "DEVICE_MISCONFIGURED", problem },
            DeviceError::Integrity(_) => Self::Withheld,
            DeviceError::Unsupported(_) => Self::Invalid { field: "algorithm", problem },
            DeviceError::Overloaded { retry_after } => Self::Busy { retry_after },
            DeviceError::Late => Self::Late,
        }
    }
}

const ROOM: Duration = Duration::from_secs(1);
/// A device process is started again within 2 s.
const AWAY: Duration = Duration::from_secs(2);
