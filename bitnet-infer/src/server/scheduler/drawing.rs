//! From logits to tokens, and from the last token of a text to its end.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::sequence::Outbox;
use super::worker::{Worker, alone};
use super::{Event, Finish};
use crate::engine::{self, NextLogits, check_logits};
use crate::eval::score::score;

impl Worker<'_> {
    /// Draws the next tokens of the texts at some places, in their order, and ends those that are complete.
    pub fn draw_all(&mut self, drawing: Vec<(usize, NextLogits)>) {
        let mut ended = Vec::new();
        for (place, next) in drawing {
            let drawn = alone(|| Ok(self.draw(place, next)));
            ended.extend(drawn.unwrap_or_else(|reason| vec![(place, Finish::Broken(reason))]));
        }
        // From the back, so that the places before stay what they are.
        ended.sort_unstable_by_key(|(place, _)| std::cmp::Reverse(*place));
        for (place, finish) in ended {
            self.end(place, finish);
        }
    }

    /// Draws for the texts that were passed over, as far as it is known by now what may come next; says whether there was one.
    pub fn draw_held(&mut self) -> bool {
        let mut drawing = Vec::new();
        for (place, sequence) in self.running.iter_mut().enumerate() {
            if sequence.next.is_some() && sequence.may_draw() {
                drawing.extend(sequence.next.take().map(|next| (place, next)));
            }
        }
        let any = !drawing.is_empty();
        self.draw_all(drawing);
        any
    }

    /// Draws the next token of the sequence at `place`, and of the choices that part from it. Returns those that have ended.
    fn draw(&mut self, place: usize, next: NextLogits) -> Vec<(usize, Finish)> {
        let sequence = &mut self.running[place];
        sequence.suspect = false;
        if !sequence.may_draw() {
            sequence.next = Some(next);
            return Vec::new();
        }
        let mut places = vec![place];
        if sequence.generated() == 0 {
            // Before its pages are kept: NaN in them would reach others that begin alike.
            let read = alone(|| check_logits(&next.logits)).and_then(|()| alone(|| self.deliver_prompt(place)));
            if let Err(reason) = read {
                return vec![(place, Finish::Broken(reason))];
            }
            let first = self.running.len();
            self.part(place);
            places.extend(first..self.running.len());
        }
        let mut ended = Vec::new();
        for place in places {
            let finish = alone(|| self.draw_one(place, &next)).unwrap_or_else(|reason| Some(Finish::Broken(reason)));
            ended.extend(finish.map(|finish| (place, finish)));
        }
        ended
    }

    fn draw_one(&mut self, place: usize, next: &NextLogits) -> engine::Result<Option<Finish>> {
        let sequence = &mut self.running[place];
        let options = Arc::clone(&sequence.ticket.options);
        if options.max_tokens == 0 {
            return Ok(Some(Finish::Length));
        }
        let number = sequence.generated();
        let token = sequence.draw(&next.logits);
        let token = token.map_err(|error| engine::Error::Input(format!("new token {number}: {error}")))?;
        let scored = options.logprobs.map(|top| score(&next.logits, token, top));
        let finish = sequence.push(token, scored, self.limits.context, &mut self.masks)?;
        sequence.forbid_ends();
        let now = Instant::now();
        let metrics = &self.shared.metrics;
        metrics.generated_tokens.inc();
        match sequence.last_token {
            None => metrics.first_token_seconds.observe((now - sequence.ticket.arrived).as_secs_f64()),
            Some(before) => metrics.between_tokens_seconds.observe((now - before).as_secs_f64()),
        }
        sequence.first_token.get_or_insert(now);
        sequence.last_token = Some(now);
        Ok(finish)
    }

    /// The choices of the prompt at `place` part from its first one: from here on each is a text of its own.
    fn part(&mut self, place: usize) {
        for nth in 1..self.running[place].places.count() {
            let own = self.running[place].places.split(1);
            match alone(|| self.running[place].fork(nth, own)) {
                Ok(fork) => self.running.push(fork),
                Err(reason) => self.fail(Rc::clone(&self.running[place].ticket), Outbox::default(), 1, &reason),
            }
        }
    }

    /// The prompt of the sequence at `place` has been read.
    fn deliver_prompt(&mut self, place: usize) -> engine::Result<()> {
        let sequence = &mut self.running[place];
        let scores = sequence.scores.take().unwrap_or_default();
        sequence.send(Event::Prompt { prompt: sequence.prompt, scores });
        if self.limits.prefix_cache {
            self.prefix.keep(&sequence.tokens, &sequence.cache, false);
        }
        Ok(())
    }

    /// The text at `place` has ended.
    pub fn end(&mut self, place: usize, finish: Finish) {
        let mut sequence = self.running.remove(place);
        let reason = match finish {
            Finish::EndToken(_) | Finish::StopText(_) | Finish::Complete => "stop",
            Finish::Length => "length",
            Finish::Broken(reason) => {
                return self.fail_sequence(sequence, &format!("the text cannot go on: {reason}"));
            }
        };
        if self.limits.prefix_cache {
            self.prefix.keep(&sequence.tokens, &sequence.cache, true);
        }
        self.shared.metrics.count_finished(reason);
        let (choice, usage) = (sequence.choice, sequence.usage());
        // A reader that fails now has its text, and nobody else's.
        let told = alone(|| {
            sequence.send(Event::End { choice, finish, usage });
            Ok(())
        });
        if told.is_ok() && !sequence.outbox.is_empty() {
            self.draining.push((sequence.ticket, sequence.outbox));
        }
    }
}
