//! One pass of the engine over the texts that run.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use super::plan::{LEAST_PROMPT, plan};
use super::scoring::score_prompt;
use super::sequence::Sequence;
use super::worker::{Worker, alone};
use super::{FAULT, Finish, Prefill};
use crate::engine::{self, LogitsFor, NextLogits, Profile, Wanted};

impl Worker<'_> {
    /// Draws what can be drawn and runs one pass, if there is something to run; says whether there was anything to do.
    pub fn step(&mut self) -> bool {
        let drawn = self.draw_held();
        let chunks = self.chunks();
        if chunks.iter().all(|&chunk| chunk == 0) {
            return drawn;
        }
        let started = Instant::now();
        let rows: usize = chunks.iter().sum();
        let texts = self.running.len();
        match catch_unwind(AssertUnwindSafe(|| self.pass(&chunks))) {
            Ok(Ok(drawing)) => self.draw_all(drawing),
            Ok(Err(error)) => self.suspect(&chunks, &error.to_string()),
            Err(_) => self.suspect(&chunks, FAULT),
        }
        let seconds = started.elapsed().as_secs_f64();
        self.shared.metrics.passes.inc();
        self.shared.metrics.pass_tokens.inc_by(rows as u64);
        if rows > texts && rows >= LEAST_PROMPT {
            let now = seconds / rows as f64;
            self.row_seconds = Some(self.row_seconds.map_or(now, |before| 0.7 * before + 0.3 * now));
        }
        true
    }

    /// Tokens of each running sequence for the next pass, for which there is memory.
    fn chunks(&mut self) -> Vec<usize> {
        loop {
            let ready = |sequence: &Sequence| sequence.outbox.full_since().is_none() && sequence.next.is_none();
            let mut places: Vec<usize> = (0..self.running.len()).filter(|&i| ready(&self.running[i])).collect();
            if let Some(&suspect) = places.iter().find(|&&i| self.running[i].suspect) {
                places = vec![suspect];
            }
            let pending: Vec<usize> = places.iter().map(|&i| self.running[i].pending()).collect();
            let mut chunks = vec![0; self.running.len()];
            places.iter().zip(plan(&pending, self.budget())).for_each(|(&i, chunk)| chunks[i] = chunk);
            let needed = |worker: &Self| -> usize {
                worker.running.iter().zip(&chunks).map(|(sequence, &chunk)| sequence.cache.pages_to_make(chunk)).sum()
            };
            while self.pages.now() + needed(self) > self.page_limit && self.prefix.evict() {
                self.shared.metrics.evictions.inc();
            }
            if self.pages.now() + needed(self) <= self.page_limit || self.running.len() <= 1 {
                return chunks;
            }
            self.put_off_the_last();
        }
    }

    fn budget(&self) -> usize {
        let streams = self.running.iter().any(|sequence| sequence.pending() == 1);
        match self.limits.prefill {
            // Nobody waits for the pass to end.
            Prefill::Within(_) if !streams && self.running.len() == 1 => MOST_ROWS,
            Prefill::Whole => usize::MAX,
            Prefill::Tokens(tokens) => tokens,
            Prefill::Within(time) => match self.row_seconds {
                Some(seconds) => ((time.as_secs_f64() / seconds) as usize).clamp(LEAST_ROWS, MOST_ROWS),
                None => LEAST_ROWS,
            },
        }
    }

    /// Runs the tokens. Returns the texts whose next token can be drawn, with what it is drawn from.
    fn pass(&mut self, chunks: &[usize]) -> engine::Result<Vec<(usize, NextLogits)>> {
        let h = self.model.config().hidden_size;
        let mut batch = Vec::new();
        let mut wants = Vec::new();
        // Of each sequence in the pass: its place, its first position, and how many states come back.
        let mut places = Vec::new();
        for (place, (sequence, &chunk)) in self.running.iter_mut().zip(chunks).enumerate().filter(|(_, (_, c))| **c > 0)
        {
            let start = sequence.cache.len();
            let (states, want) = match () {
                () if sequence.is_scoring() => (chunk, LogitsFor::All),
                () if chunk == sequence.pending() => (1, LogitsFor::Last),
                () => (0, LogitsFor::None),
            };
            places.push((place, start, states));
            wants.push(want);
            batch.push(engine::Sequence { tokens: &sequence.tokens[start..start + chunk], cache: &mut sequence.cache });
        }
        let states_nh = self.model.states_for(&mut batch, &wants, &mut Profile::default())?;
        drop(batch);

        let mut rest = states_nh.as_slice();
        let mut last_nh = Vec::new();
        let mut drawing = Vec::new();
        let mut failed = Vec::new();
        for (place, start, states) in places {
            let (own, later) = rest.split_at(states * h);
            rest = later;
            let sequence = &mut self.running[place];
            if let Err(reason) = alone(|| score_prompt(self.model, sequence, start, own)) {
                failed.push((place, reason));
            } else if sequence.pending() == 0 {
                last_nh.extend_from_slice(&own[own.len() - h..]);
                drawing.push(place);
            }
        }
        let wanted: Vec<Wanted> = drawing.iter().map(|&place| wanted(&self.running[place])).collect();
        let mut next = match drawing.is_empty() {
            true => Vec::new(),
            false => self.model.next_logits_of(&last_nh, &wanted),
        };
        for (place, reason) in failed.into_iter().rev() {
            self.end(place, Finish::Broken(reason));
            // Those behind it have moved up.
            drawing.iter_mut().filter(|drawing| **drawing > place).for_each(|drawing| *drawing -= 1);
        }
        Ok(drawing.into_iter().zip(next.drain(..)).collect())
    }

    /// A pass has failed, and nobody knows by which of its texts. Each is read again by itself; one that was by itself ends.
    fn suspect(&mut self, chunks: &[usize], reason: &str) {
        // What a failed pass has left in caches is not known.
        self.prefix.clear();
        let places: Vec<usize> = (0..chunks.len()).filter(|&place| chunks[place] > 0).collect();
        if let [place] = places[..] {
            return self.end(place, Finish::Broken(reason.to_owned()));
        }
        for place in places.into_iter().rev() {
            match self.empty_cache() {
                Ok(empty) => {
                    self.running[place].restart(empty);
                    self.running[place].suspect = true;
                }
                Err(error) => self.end(place, Finish::Broken(error.to_string())),
            }
        }
    }
}

/// What of the next logits the draw, and the scores that were asked for, depend on.
fn wanted(sequence: &Sequence) -> Wanted {
    let all = sequence.ticket.options.logprobs.is_some() || sequence.guide.is_some();
    if all { Wanted::All } else { sequence.sampler.wanted(&sequence.tokens) }
}

/// Bounds on the tokens of prompts in a pass, if a time is given.
const LEAST_ROWS: usize = 16;
const MOST_ROWS: usize = 256;
