//! The TSS2 PRIVATE KEY file form.
