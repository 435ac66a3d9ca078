//! Which tokens may come next in texts that are held to something: found out beside the passes of the engine.
//!
//! What is allowed depends on the tokens so far and on nothing else, so it is worked out on threads of their own as soon as a
//! token is known, while the engine computes what the model makes of it. A text whose answer is late is passed over; nobody waits
//! for it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Receiver, TryRecvError};

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::Command;
use crate::engine::{Error, Result};
use crate::server::structured::{Allowed, Constraint};

/// The threads that find it out; they begin with the first text that needs them.
#[derive(Default)]
pub struct Masks(Option<ThreadPool>);

/// What a text is held to.
pub struct Guide {
    state: State,
    /// Wakes the engine's thread.
    wake: mpsc::Sender<Command>,
}

enum State {
    Idle(Constraint),
    /// It is being found out.
    Away(Receiver<Found>),
    Ready(Constraint, Allowed),
    Broken(String),
}

type Found = std::result::Result<(Constraint, Allowed), String>;

impl Guide {
    /// A text that is held to `constraint`; the engine hears through `wake` that something was found out.
    pub fn new(constraint: Constraint, wake: mpsc::Sender<Command>) -> Self {
        Self { state: State::Idle(constraint), wake }
    }

    /// Begins to find out what may come next, unless that is known or under way.
    pub fn begin(&mut self, masks: &mut Masks) {
        self.state = match std::mem::replace(&mut self.state, State::Broken(LOST.into())) {
            State::Idle(constraint) => masks.find(constraint, self.wake.clone()),
            other => other,
        };
    }

    /// Whether [`Guide::allowed`] has an answer.
    pub fn is_ready(&mut self) -> bool {
        if let State::Away(answer) = &self.state {
            self.state = match answer.try_recv() {
                Ok(Ok((constraint, allowed))) => State::Ready(constraint, allowed),
                Ok(Err(reason)) => State::Broken(reason),
                Err(TryRecvError::Disconnected) => State::Broken(LOST.into()),
                Err(TryRecvError::Empty) => return false,
            };
        }
        !matches!(self.state, State::Idle(_))
    }

    /// The tokens that may come next.
    ///
    /// # Errors
    /// If that could not be found out.
    pub fn allowed(&self) -> Result<&Allowed> {
        match &self.state {
            State::Ready(_, allowed) => Ok(allowed),
            State::Broken(reason) => Err(Error::Input(reason.clone())),
            State::Idle(_) | State::Away(_) => Err(Error::Input(LOST.into())),
        }
    }

    /// Takes the next token. Returns whether the text is complete; if not, what may follow is found out from now on.
    ///
    /// # Errors
    /// If the token was not allowed.
    pub fn push(&mut self, token: u32, masks: &mut Masks) -> Result<bool> {
        let state = std::mem::replace(&mut self.state, State::Broken(LOST.into()));
        let State::Ready(mut constraint, _) = state else { return Err(Error::Input(LOST.into())) };
        let complete = constraint.push(token).map_err(Error::Input)?;
        self.state = State::Idle(constraint);
        if !complete {
            self.begin(masks);
        }
        Ok(complete)
    }

    /// The same for another text that is as far.
    ///
    /// # Errors
    /// If what may come next is not known.
    pub fn fork(&self) -> Result<Self> {
        let allowed = self.allowed()?.clone();
        let State::Ready(constraint, _) = &self.state else { return Err(Error::Input(LOST.into())) };
        Ok(Self { state: State::Ready(constraint.clone(), allowed), wake: self.wake.clone() })
    }
}

impl Masks {
    fn find(&mut self, constraint: Constraint, wake: mpsc::Sender<Command>) -> State {
        if self.0.is_none() {
            let threads = ThreadPoolBuilder::new().num_threads(rayon::current_num_threads());
            self.0 = threads.thread_name(|index| format!("masks-{index}")).build().ok();
        }
        let (answer, found) = mpsc::channel();
        let work = move || {
            let found = catch_unwind(AssertUnwindSafe(move || {
                let mut constraint = constraint;
                constraint.allowed().map(|allowed| (constraint, allowed))
            }));
            // The text may be gone, and the engine too.
            let _ = answer.send(found.unwrap_or_else(|_| Err(super::FAULT.into())));
            let _ = wake.send(Command::Look);
        };
        match &self.0 {
            Some(threads) => threads.spawn(work),
            // A machine that has no thread to give does it here.
            None => work(),
        }
        State::Away(found)
    }
}

const LOST: &str = "what it had to be was lost; this is a fault of the server";
