//! The one call that the cryptoki crate has no door to: C_Sign into a buffer, after a C_SignInit.
//!
//! Its `Session::sign` is C_SignInit, C_Sign for the length and C_Sign: a call more than a signature needs, and no room
//! for the login that CKA_ALWAYS_AUTHENTICATE wants between C_SignInit and C_Sign (PKCS#11 2.40, 5.6.1).

#![allow(unsafe_code, reason = "a C function called by its pointer")]

use std::path::Path;

use cryptoki::error::{Error, Rv};
use cryptoki_sys::{CK_C_Sign, CK_FUNCTION_LIST, CK_ULONG, CKR_FUNCTION_NOT_SUPPORTED, CKR_OK};

/// A module's C_Sign.
pub(super) struct CSign {
    function: CK_C_Sign,
    /// Keeps the module loaded.
    _module: cryptoki_sys::Pkcs11,
}

impl CSign {
    /// Looks the function up in a module that cryptoki has loaded before: the loader counts, and returns the same one.
    pub(super) fn load(module: &Path) -> Result<Self, Error> {
        // SAFETY: cryptoki has loaded and run this library already, so its constructors don't run again.
        let library = unsafe { cryptoki_sys::Pkcs11::new(module) }.map_err(Error::LibraryLoading)?;
        if library.C_GetFunctionList.is_err() {
            return Err(Error::MissingSymbol("C_GetFunctionList"));
        }
        let mut list: *mut CK_FUNCTION_LIST = std::ptr::null_mut();
        // SAFETY: the function exists, and `list` is a place for the pointer that it writes (PKCS#11 2.40, 5.4).
        let rv = unsafe { library.C_GetFunctionList(&raw mut list) };
        if rv != CKR_OK || list.is_null() {
            return Err(Error::NullFunctionPointer);
        }
        // SAFETY: the list is the module's own static table, which lives as long as the module. It may be packed: copied out.
        let function = unsafe { (*list).C_Sign };
        Ok(Self { function, _module: library })
    }

    /// Ends the signature that C_SignInit began in this session.
    pub(super) fn call(&self, session: CK_ULONG, data: &[u8]) -> Result<Vec<u8>, Rv> {
        let function = self.function.ok_or(Rv::from(CKR_FUNCTION_NOT_SUPPORTED))?;
        let mut signature = vec![0; MAX_SIGNATURE];
        let mut length = MAX_SIGNATURE as CK_ULONG;
        // SAFETY: both buffers outlive the call and are as long as stated; the module does not write to the data, which is
        // mutable in C by omission only. The session belongs to this thread.
        let rv = unsafe {
            function(session, data.as_ptr().cast_mut(), data.len() as CK_ULONG, signature.as_mut_ptr(), &raw mut length)
        };
        match Rv::from(rv) {
            Rv::Ok => {
                signature.truncate(length as usize);
                Ok(signature)
            }
            error @ Rv::Error(_) => Err(error),
        }
    }
}

/// RSA of 8,192 bits.
const MAX_SIGNATURE: usize = 1024;
