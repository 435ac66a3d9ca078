//! From the queue to the engine, and back where memory is short.

use std::collections::VecDeque;
use std::time::Instant;

use super::Limits;
use super::sequence::Sequence;
use super::worker::Worker;
use crate::engine::{self, KvCache, Model};

/// Pages that fit the memory for keys and values.
pub fn page_limit(model: &Model, limits: &Limits) -> usize {
    let cache = KvCache::with_type(model.config(), 1, limits.kv_type);
    cache.map_or(0, |cache| limits.kv_bytes / cache.page_bytes().max(1))
}

impl<'a> Worker<'a> {
    pub fn empty_cache(&self) -> engine::Result<KvCache> {
        let cache = KvCache::with_type(self.model.config(), self.limits.context, self.limits.kv_type)?;
        Ok(cache.counted_by(&self.pages))
    }

    /// Begins with texts that wait, request after request in turn, as long as there is room.
    pub fn admit(&mut self) {
        while let Some(mut request) = self.waiting.pop_front() {
            let Some(mut sequence) = request.pop_front() else { continue };
            let taken: usize = self.running.iter().map(|other| other.places.count()).sum();
            let crowded = !self.running.is_empty() && taken + sequence.places.count() > self.limits.parallel;
            if crowded || !self.make_room_for(&mut sequence) {
                request.push_front(sequence);
                self.waiting.push_front(request);
                return;
            }
            if sequence.admitted.is_none() {
                let now = Instant::now();
                sequence.admitted = Some(now);
                let metrics = &self.shared.metrics;
                metrics.queue_seconds.observe(now.duration_since(sequence.ticket.arrived).as_secs_f64());
                metrics.cached_tokens.inc_by(sequence.cache.len() as u64);
                metrics.prompt_tokens.inc_by(sequence.prompt_tokens as u64);
                sequence.cached_tokens = Some(sequence.cache.len());
            }
            if let Some(guide) = &mut sequence.guide {
                guide.begin(&mut self.masks);
            }
            sequence.places.begin();
            self.running.push(sequence);
            if !request.is_empty() {
                self.waiting.push_back(request);
            }
        }
    }

    /// Gives a text that waits what is known of its beginning; says whether the rest of it fits the memory beside the others.
    fn make_room_for(&mut self, sequence: &mut Sequence) -> bool {
        // Positions that are scored must be computed.
        if self.limits.prefix_cache && !sequence.is_scoring() {
            self.prefix.restore(&sequence.tokens, &mut sequence.cache);
        }
        let promised: usize = self.running.iter().map(|other| other.cache.pages_to_make(other.pending() + 1)).sum();
        let needed = promised + sequence.cache.pages_to_make(sequence.pending() + 1);
        let missing = needed.saturating_sub(self.page_limit.saturating_sub(self.pages.now()));
        if self.running.is_empty() || self.prefix.can_give_up(missing) {
            return true;
        }
        if let Ok(empty) = self.empty_cache() {
            sequence.restart(empty);
        }
        false
    }

    /// The youngest text gives its memory back and waits; what it has is computed again later, to the same bits.
    pub fn put_off_the_last(&mut self) {
        let Some(mut sequence) = self.running.pop() else { return };
        if let Ok(empty) = self.empty_cache() {
            sequence.restart(empty);
        }
        self.shared.metrics.preemptions.inc();
        sequence.places.wait();
        self.waiting.push_front(VecDeque::from([sequence]));
    }
}
