//! From gradients to new weights: collection, clipping, AdamW, schedules.

mod adamw;
mod gradients;
mod places;
mod schedule;
#[cfg(test)]
mod tests;

pub use adamw::{AdamW, AdamWConfig, Moments};
pub use gradients::Gradients;
pub use schedule::{Schedule, ScheduleConfig};
