//! What goes wrong at one text, and what becomes of the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};

use bitnet_model::tokenizer::Tokenizer;
use proptest::prelude::*;
use tokio::sync::mpsc as events;

use super::worker::Worker;
use super::{Command, Event, Limits, Options, Places, Prefill, Shared, Submission};
use crate::engine::{KvType, Model, RandomModel, SamplerConfig};
use crate::server::metrics::Metrics;

fn model() -> Model {
    let shape = RandomModel::named("tiny").expect("known");
    shape.build(crate::kernels::best().expect("a kernel")).expect("a model")
}

/// A word for every token of the model.
fn tokenizer() -> Tokenizer {
    let vocab: serde_json::Map<_, _> = (0..256).map(|id| (format!("w{id}"), id.into())).collect();
    let model = serde_json::json!({"type": "WordLevel", "vocab": vocab, "unk_token": "w0"});
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "decoder": null, "model": model,
    });
    Tokenizer::from_bytes(tokenizer.to_string().as_bytes(), "words").expect("a tokenizer")
}

fn shared() -> Arc<Shared> {
    Arc::new(Shared {
        waiting: AtomicUsize::new(0),
        active: AtomicUsize::new(0),
        closed: AtomicBool::new(false),
        queue: 1000,
        parallel: 8,
        metrics: Arc::new(Metrics::new()),
    })
}

fn limits(pages: usize, model: &Model) -> Limits {
    let page = crate::engine::KvCache::new(model.config(), 1).expect("fits").page_bytes();
    Limits {
        parallel: 8,
        queue: 1000,
        kv_bytes: pages * page,
        kv_type: KvType::F32,
        context: 256,
        prefill: Prefill::Tokens(24),
        prefix_cache: true,
        patience: Duration::from_secs(60),
    }
}

/// What is wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// Nothing.
    None,
    /// A token that the model does not have.
    UnknownToken,
    /// No token.
    NoToken,
    /// A temperature that is not a number.
    Temperature,
    /// No choices.
    NoChoices,
    /// Its reader panics when it is woken.
    Reader,
    /// Its reader leaves.
    Leaves,
    /// While it runs, a token becomes one that the model does not have: the pass fails.
    PassFails,
    /// While it runs, its counts stop making sense: the thread panics at it.
    Panics,
}

const FAULTS: [Fault; 9] = [
    Fault::None,
    Fault::UnknownToken,
    Fault::NoToken,
    Fault::Temperature,
    Fault::NoChoices,
    Fault::Reader,
    Fault::Leaves,
    Fault::PassFails,
    Fault::Panics,
];

#[derive(Clone, Debug)]
struct Request {
    fault: Fault,
    length: usize,
    choices: usize,
    max_tokens: usize,
    seed: u64,
    scored: bool,
}

impl Request {
    fn prompt(&self) -> Vec<u32> {
        let prompt = (0..self.length as u64).map(|i| ((i * 7 + self.seed % 3 * (i / 40)) % 250) as u32);
        match self.fault {
            Fault::NoToken => Vec::new(),
            Fault::UnknownToken => prompt.chain([256]).collect(),
            _ => prompt.collect(),
        }
    }

    fn options(&self) -> Options {
        let temperature = if self.fault == Fault::Temperature { f32::NAN } else { 0.9 };
        Options {
            choices: if self.fault == Fault::NoChoices { 0 } else { self.choices },
            max_tokens: self.max_tokens,
            min_tokens: 0,
            end_tokens: Vec::new(),
            stops: Vec::new(),
            sampler: SamplerConfig { temperature, seed: self.seed, ..SamplerConfig::default() },
            logprobs: None,
            prompt_logprobs: self.scored.then_some(1),
            constraint: None,
        }
    }
}

struct Panicking;

impl Wake for Panicking {
    fn wake(self: Arc<Self>) {
        panic!("a reader that does not want to be woken");
    }
}

/// A request on its way.
struct Asked {
    request: Request,
    events: Option<events::Receiver<Event>>,
    texts: Vec<String>,
    ended: usize,
    failed: bool,
}

impl Asked {
    fn submit(request: &Request, worker: &mut Worker, shared: &Arc<Shared>, wake: &mpsc::Sender<Command>) -> Self {
        let options = request.options();
        let (sink, mut receiver) = events::channel(4096);
        if request.fault == Fault::Reader {
            let waker = Waker::from(Arc::new(Panicking));
            assert!(receiver.poll_recv(&mut Context::from_waker(&waker)).is_pending());
        }
        let places = Places::take(shared, options.choices).expect("room");
        let texts = vec![String::new(); options.choices];
        worker.accept(Submission {
            prompts: vec![request.prompt()],
            options: Arc::new(options),
            sink,
            arrived: Instant::now(),
            places,
            wake: wake.clone(),
        });
        let request = request.clone();
        Self { request, events: Some(receiver), texts, ended: 0, failed: false }
    }

    fn take(&mut self) {
        while let Some(event) = self.events.as_mut().and_then(|events| events.try_recv().ok()) {
            match event {
                Event::Prompt { .. } => {}
                Event::Text { choice, text, .. } => self.texts[choice].push_str(&text),
                Event::End { .. } => self.ended += 1,
                Event::Failed(_) => self.failed = true,
            }
        }
    }
}

/// Rounds until nothing is left; `meddle` sees the worker before each.
fn finish(
    worker: &mut Worker,
    asked: &mut [Asked],
    shared: &Shared,
    mut meddle: impl FnMut(&mut Worker, &mut [Asked]),
) {
    for round in 0.. {
        assert!(round < 20_000, "{} texts never end", shared.active.load(Ordering::Relaxed));
        asked.iter_mut().for_each(Asked::take);
        if shared.active.load(Ordering::Relaxed) == 0 {
            return;
        }
        meddle(worker, asked);
        worker.round();
    }
}

/// What a request gets if there is no other.
fn alone(request: &Request, model: &Model, tokenizer: &Tokenizer) -> Vec<String> {
    let (shared, (wake, _commands)) = (shared(), mpsc::channel());
    let mut worker = Worker::new(model, tokenizer, limits(100, model), Arc::clone(&shared));
    let mut asked = [Asked::submit(request, &mut worker, &shared, &wake)];
    finish(&mut worker, &mut asked, &shared, |_, _| {});
    let [asked] = asked;
    assert_eq!((asked.ended, asked.failed), (request.choices, false), "{request:?}");
    asked.texts
}

fn request() -> impl Strategy<Value = Request> {
    let fault = prop_oneof![2 => Just(Fault::None), 3 => proptest::sample::select(FAULTS.to_vec())];
    (fault, 1usize..120, 1usize..4, 1usize..12, 0u64..50, any::<bool>()).prop_map(
        |(fault, length, choices, max_tokens, seed, scored)| Request {
            fault,
            length,
            choices,
            max_tokens,
            seed,
            scored,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Whatever fails, and however: the others get what they get alone, to the letter, and when all is over no place and no page
    /// is taken.
    #[test]
    fn what_fails_at_one_text_ends_that_text_only(
        requests in proptest::collection::vec((request(), 0usize..6), 1..7),
        pages in prop_oneof![Just(100usize), Just(9)],
        strike in 1usize..9,
    ) {
        let (model, tokenizer) = (model(), tokenizer());
        let (shared, (wake, _commands)) = (shared(), mpsc::channel());
        let mut worker = Worker::new(&model, &tokenizer, limits(pages, &model), Arc::clone(&shared));
        let mut asked = Vec::new();
        for (request, rounds) in &requests {
            asked.push(Asked::submit(request, &mut worker, &shared, &wake));
            (0..*rounds).for_each(|_| worker.round());
        }
        let mut round = 0;
        finish(&mut worker, &mut asked, &shared, |worker, asked| {
            round += 1;
            if round % strike != 0 {
                return;
            }
            for asked in asked.iter_mut().filter(|asked| asked.request.fault == Fault::Leaves) {
                asked.events = None;
            }
            // Requests are told apart by what they ask for, which is as unique as the seed and the length.
            for sequence in &mut worker.running {
                let options = &sequence.ticket.options;
                let is = |fault| asked.iter().any(|asked| {
                    let own = &asked.request;
                    own.fault == fault && own.seed == options.sampler.seed && own.length == sequence.prompt_tokens
                        && own.choices == options.choices && own.max_tokens == options.max_tokens
                        && own.scored == options.prompt_logprobs.is_some()
                });
                if is(Fault::PassFails)
                    && let Some(last) = sequence.tokens.last_mut()
                {
                    *last = 9999;
                }
                if is(Fault::Panics) {
                    sequence.prompt_tokens = usize::MAX;
                }
            }
        });
        for asked in &asked {
            match asked.request.fault {
                Fault::None if has_no_twin(&asked.request, &requests) => {
                    prop_assert_eq!((asked.ended, asked.failed), (asked.request.choices, false));
                    prop_assert_eq!(&asked.texts, &alone(&asked.request, &model, &tokenizer));
                }
                Fault::UnknownToken | Fault::NoToken | Fault::Temperature | Fault::NoChoices => {
                    prop_assert!(asked.failed && asked.ended == 0, "{:?}", asked.request);
                }
                _ => {}
            }
        }
        prop_assert_eq!((shared.active.load(Ordering::Relaxed), shared.waiting.load(Ordering::Relaxed)), (0, 0));
        worker.round();
        prop_assert!(worker.running.is_empty() && worker.waiting.is_empty());
        prop_assert_eq!(worker.pages.now(), worker.prefix.pages());
    }
}

/// Whether no faulty request looks like this one, and would be meddled with in its place.
fn has_no_twin(request: &Request, requests: &[(Request, usize)]) -> bool {
    let key = |request: &Request| (request.length, request.choices, request.max_tokens, request.seed, request.scored);
    !requests.iter().any(|(other, _)| other.fault != Fault::None && key(other) == key(request))
}
