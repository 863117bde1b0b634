//! How large a request may be, over whatever protocol it comes.

use crate::signer::SignError;

/// Refuses a payload above its limit.
pub(super) fn payload(payload: &[u8]) -> Result<(), SignError> {
    if payload.len() > LARGEST_PAYLOAD {
        let problem = format!("{} bytes; at most {LARGEST_PAYLOAD}: sign a digest instead", payload.len());
        return Err(SignError::invalid("payload", problem));
    }
    Ok(())
}

/// A blob to be signed. What is larger is signed by its digest.
pub(super) const LARGEST_PAYLOAD: usize = 1 << 20;
/// Any other request.
pub(super) const SMALL_MESSAGE: usize = 64 << 10;
