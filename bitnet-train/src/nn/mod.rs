//! The trainable network, to be read like a paper.
//!
//! Data flows token ids -> [`transformer`] -> [`block`] -> [`attention`] and [`feed_forward`] -> [`bit_linear`]; the numbers
//! are computed by an [`crate::ops::Ops`], and the trainable ones live in [`parameters`].

pub mod attention;
pub mod bit_linear;
pub mod block;
pub mod estimator;
pub mod feed_forward;
pub mod parameters;
pub mod transformer;
