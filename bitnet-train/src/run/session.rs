//! The loop: read it top to bottom.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, anyhow, bail, ensure};
use bitnet_infer::eval::memory::machine_memory;
use bitnet_infer::tell;
use bitnet_model::ModelConfig;
use bitnet_model::tokenizer::Tokenizer;
use serde_json::json;

use super::checkpoint::{self, Best, Contents, Latest, State};
use super::diagnostics;
use super::evaluate::{self, Validation};
use super::folder::RunFolder;
use super::history;
use super::metrics::{Reporter, StepMetrics, TokenRate, ValidationMetrics};
use super::plan::check_memory;
use super::{environment, init, load_parameters, peak_memory};
use crate::config::{Run, RunConfig};
use crate::data::tokenizer::BuiltTokenizer;
use crate::data::{self, Batches, Prepared, Stopped, Trust};
use crate::export::export;
use crate::nn::parameters::Parameters;
use crate::nn::transformer::{Sequences, Transformer};
use crate::ops::{self, Codes};
use crate::optim::{AdamW, Gradients, Schedule};

/// How a session ended.
#[derive(Debug)]
pub enum Outcome {
    /// All steps were taken; the exported model, if one was asked for.
    Finished(Option<PathBuf>),
    /// A person stopped it; the checkpoint that was saved, or none where no step was taken yet.
    Interrupted(Option<PathBuf>),
    /// A resume of a run whose newest checkpoint has taken all steps, or more than `train.steps` now says.
    NothingLeft {
        /// Steps that the newest checkpoint has taken.
        taken: u64,
        /// What `train.steps` says.
        steps: u64,
    },
}

/// What a person allows beyond the ordinary.
#[derive(Clone, Copy, Debug, Default)]
pub struct Choices {
    /// An earlier run in the same folder is replaced.
    pub overwrite: bool,
    /// A run that is estimated to need more memory than the machine has is tried.
    pub force: bool,
    /// Whether data that was read before is read again to see that it is the same.
    pub trust: Trust,
}

/// Begins a run. `interrupt` ends the preparation of its data at once, and training after the step in progress.
///
/// # Errors
/// If the data, the folder or a step fails; then the last checkpoint stands.
pub fn start(run: &Run, choices: Choices, interrupt: &AtomicBool) -> Result<Outcome> {
    // Before minutes of preparation.
    RunFolder::check_free(&run.folder(), choices.overwrite)?;
    let Some((prepared, config)) = prepare(run, choices, interrupt)? else { return Ok(Outcome::Interrupted(None)) };
    // Before a folder exists, too: the model to start from may not fit.
    let parameters = init::parameters(run, &config, &prepared)?;
    let folder = RunFolder::create(&run.folder(), choices.overwrite)?;
    let environment = environment::describe(&run.config.train, rayon::current_num_threads());
    folder.write("environment.json", &serde_json::to_string_pretty(&environment)?)?;
    folder
        .write("tokenizer.json", std::str::from_utf8(&prepared.tokenizer_json).context("a tokenizer.json is UTF-8")?)?;
    history::record(&folder, run, 0)?;
    // Last: a folder counts as a run from here on.
    folder.write("config.toml", &toml::to_string_pretty(&run.written()?).context("a config prints")?)?;

    let optimizer = AdamW::new(run.config.optimizer.clone(), &parameters);
    let codes = ops::codes(&config, &parameters)?;
    let state =
        State { version: checkpoint::VERSION, step: 0, tokens: 0, best: None, data: prepared.train.fingerprint() };
    Session { run, config, prepared, folder, parameters, optimizer, codes, state }.train(interrupt)
}

/// Continues a run from its newest checkpoint, exactly. Where no step and no export is left, nothing is written.
///
/// # Errors
/// As [`start`], or if there is no checkpoint, the data is no longer the same, or another process still writes the run.
pub fn resume(root: &Path, choices: Choices, interrupt: &AtomicBool) -> Result<Outcome> {
    let folder = RunFolder::open(root)?.locked()?;
    let run = Run::of_folder(&folder.config())?;
    for warning in &run.warnings {
        tell!("warning: {warning}");
    }
    checkpoint::remove_leftovers(&folder)?;
    let latest = Latest::find(&folder)?;
    let (taken, steps) = (latest.state.step, run.config.train.steps);
    // A kill after the last step may have come before the export.
    if taken > steps || (taken == steps && folder.result().exists()) {
        return Ok(Outcome::NothingLeft { taken, steps });
    }
    let Some((prepared, config)) = prepare(&run, choices, interrupt)? else { return Ok(Outcome::Interrupted(None)) };
    ensure!(
        latest.state.data == prepared.train.fingerprint(),
        "{}: the training data has changed since this checkpoint; put it back, or begin another run",
        latest.path.display()
    );
    tell!("resuming {} at step {taken} of {steps}", root.display());
    for change in history::record(&folder, &run, taken)?.unwrap_or_default() {
        tell!("  {}: {}, was {}", change.key, change.to, change.from);
    }
    let parameters = load_parameters(&latest.path, &config)?;
    let optimizer = latest.optimizer(run.config.optimizer.clone(), &parameters)?;
    let codes = latest.codes()?;
    Session { run: &run, config, prepared, folder, parameters, optimizer, codes, state: latest.state }.train(interrupt)
}

/// Data and the network's configuration, with the checks that need both; nothing if a person stopped it.
fn prepare(run: &Run, choices: Choices, interrupt: &AtomicBool) -> Result<Option<(Prepared, ModelConfig)>> {
    let bar = data::bar();
    let progress = |progress| {
        if interrupt.load(Ordering::Relaxed) {
            bail!(Stopped);
        }
        bar(progress);
        Ok(())
    };
    let (data, tokenizer) = (&run.config.data, &run.config.tokenizer);
    let prepared = match data::prepare(data, tokenizer, &cache_folder(), choices.trust, &progress) {
        Err(error) if error.is::<Stopped>() => return Ok(None),
        prepared => prepared?,
    };
    drop(bar);
    for fault in &prepared.warnings {
        tell!("warning: {fault}");
    }
    let config = run.model_config(prepared.vocab_size, prepared.eos)?;
    // Before a folder exists: sequences that fit both shards.
    let train = &run.config.train;
    Batches::new(prepared.train.clone(), train.batch_size, train.sequence_length, run.config.run.seed)
        .with_context(|| format!("{}: training data", run.origin()))?;
    data::windows(&prepared.validation, train.sequence_length)
        .with_context(|| format!("{}: validation data", run.origin()))?;
    let tokenizer = Tokenizer::from_bytes(&prepared.tokenizer_json, "tokenizer.json")?;
    if run.config.evaluation.sample_tokens > 0 {
        evaluate::check_prompt(&run.config.evaluation, &tokenizer, config.max_position_embeddings)
            .with_context(|| run.origin().to_owned())?;
    }
    // Mapped shards do not count: the system takes their memory back where it is short of it.
    check_memory(run.memory_of_run(&config, 0), machine_memory(), choices.force)
        .map_err(|reason| anyhow!("{}: {reason}", run.origin()))?;
    Ok(Some((prepared, config)))
}

/// Where tokenizers and token shards are kept between runs: `BITNET_CACHE`, or `bitnet` in the user's cache folder.
fn cache_folder() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("BITNET_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|path| path.join("bitnet")))
        .or_else(|| set("HOME").map(|path| path.join(".cache/bitnet")))
        .unwrap_or_else(|| ".cache/bitnet".into())
}

/// A run in progress.
struct Session<'a> {
    run: &'a Run,
    config: ModelConfig,
    prepared: Prepared,
    folder: RunFolder,
    parameters: Parameters,
    optimizer: AdamW,
    codes: Codes,
    state: State,
}

impl Session<'_> {
    fn train(mut self, interrupt: &AtomicBool) -> Result<Outcome> {
        let RunConfig { run, train, evaluation, checkpoint, .. } = &self.run.config;
        let seq = train.sequence_length;
        let model = Transformer::new(&self.config, &self.parameters, seq, self.run.estimator, self.run.ops.clone())?;
        let batches = Batches::new(self.prepared.train.clone(), train.batch_size, seq, run.seed)?;
        let tokenizer = Tokenizer::from_bytes(&self.prepared.tokenizer_json, "tokenizer.json")?;
        let validation = Validation::new(self.prepared.validation.clone(), &tokenizer, seq, evaluation.windows)?;
        let schedule = Schedule::new(&self.run.config.schedule, &self.run.config.optimizer, train.steps);
        let mut reporter = Reporter::new(&self.folder, self.state.step, train.steps)?;
        reporter.say(&self.summary());
        let mut rate = TokenRate::start();
        let mut gradients = Gradients::of_parameters(&self.parameters);

        while self.state.step < train.steps {
            let step = self.state.step;
            let due = |every: u64| every > 0 && (step + 1).is_multiple_of(every);

            // One training step.
            gradients.clear();
            let mut loss_sum = 0f64;
            for micro in 0..train.gradient_accumulation {
                let batch = batches.batch(step, micro);
                let index = step * u64::from(train.gradient_accumulation) + u64::from(micro);
                let (inputs, targets) = (&batch.inputs, &batch.targets);
                let sequences = Sequences { inputs, targets, count: train.batch_size, index };
                let loss = model.differentiate(&self.parameters, sequences, &mut gradients);
                let loss = loss.map_err(|e| e.context(self.broken("the step failed")))?;
                ensure!(loss.is_finite(), "{}", self.broken(&format!("the loss is {loss}")));
                loss_sum += loss;
            }
            let last = step + 1 == train.steps;
            let reported = due(train.log_every) || last;
            let used = if reported { self.run.ops.codes(&model, &self.parameters)? } else { Codes::new() };
            let (learning_rate, weight_decay) = (schedule.learning_rate(step), schedule.weight_decay(step));
            let stepped = self.optimizer.step(
                &self.parameters,
                &gradients,
                train.gradient_accumulation,
                learning_rate,
                weight_decay,
            );
            let gradient_norm = stepped.map_err(|e| e.context(self.broken("the step failed")))?;
            self.state.step += 1;
            self.state.tokens += self.run.tokens_per_step();
            rate.add(self.run.tokens_per_step());
            let loss = loss_sum / f64::from(train.gradient_accumulation);
            reporter.tick(self.state.step, loss);

            // Once in a while: report.
            if reported {
                let tokens_per_second = rate.take();
                let step = self.state.step;
                reporter.step(&StepMetrics {
                    step,
                    loss,
                    learning_rate,
                    weight_decay,
                    gradient_norm,
                    tokens_per_second,
                });
                let codes = diagnostics::report(&self.config, &self.parameters, &used, &mut self.codes)?;
                reporter.codes(step, &codes);
            }
            // Once in a while: validate and speak.
            let mut improved = false;
            if due(evaluation.every) || last {
                improved = self.validate(&model, &validation, &tokenizer, &mut reporter)?;
            }
            // Once in a while: save.
            let stopped = interrupt.load(Ordering::Relaxed);
            if due(checkpoint.every) || last || stopped || (improved && checkpoint.keep_best) {
                let path = self.save()?;
                if stopped && !last {
                    reporter.finish();
                    return Ok(Outcome::Interrupted(Some(path)));
                }
            }
            rate.skip();
        }
        reporter.finish();
        self.finish()
    }

    /// Validates, reports, and tells whether this is the best so far.
    fn validate(
        &mut self,
        model: &Transformer,
        validation: &Validation,
        tokenizer: &Tokenizer,
        reporter: &mut Reporter,
    ) -> Result<bool> {
        let RunConfig { train, evaluation, export, run, .. } = &self.run.config;
        let loss = validation
            .loss(model, &self.parameters, train.batch_size, |done, all| reporter.progress_of_validation(done, all))?;
        ensure!(loss.is_finite(), "{}", self.broken(&format!("the validation loss is {loss}")));
        let step = self.state.step;
        reporter.validation(&ValidationMetrics { step, loss, bits_per_byte: validation.bits_per_byte(loss) });
        if evaluation.sample_tokens > 0 {
            let float_type = export.float_type;
            // A sample is for looking at; a run does not end for want of one.
            match evaluate::sample(&self.config, &self.parameters, tokenizer, evaluation, float_type, run.seed) {
                Ok(text) => reporter.sample(step, &text),
                Err(e) => reporter.say(&format!("warning: no sample at step {step}: {e:#}")),
            }
        }
        let improved = self.state.best.is_none_or(|best| loss < best.loss);
        if improved {
            self.state.best = Some(Best { step, loss });
        }
        Ok(improved)
    }

    fn save(&self) -> Result<PathBuf> {
        let keep = &self.run.config.checkpoint;
        let contents = Contents { parameters: &self.parameters, optimizer: &self.optimizer, codes: &self.codes };
        checkpoint::save(&self.folder, &self.state, &contents, keep.keep_last, keep.keep_best)
    }

    fn finish(self) -> Result<Outcome> {
        let settings = &self.run.config.export;
        let exported = settings.at_end.then(|| self.folder.model());
        if let Some(path) = &exported {
            let json = self.prepared.tokenizer_json.clone();
            let odd = export(path, &self.config, &self.parameters, settings.float_type, json)?;
            odd.iter().for_each(|warning| tell!("warning: {warning}"));
        }
        let (peak, estimated) = (peak_memory(), self.estimated_memory());
        if let Some(peak) = peak {
            let of = estimated.map_or(String::new(), |bytes| format!(" (estimated {:.0} MB)", bytes as f64 / 1e6));
            tell!("peak memory {:.0} MB{of}", peak as f64 / 1e6);
        }
        let result = json!({
            "steps": self.state.step,
            "tokens": self.state.tokens,
            "parameters": self.config.parameters(),
            "best": self.state.best,
            "peak_memory": peak,
            "estimated_memory": estimated,
        });
        self.folder.write("result.json", &serde_json::to_string_pretty(&result)?)?;
        Ok(Outcome::Finished(exported))
    }

    /// One paragraph on what is about to happen.
    fn summary(&self) -> String {
        let train = &self.run.config.train;
        let memory = match self.estimated_memory() {
            Some(bytes) => format!("; about {:.0} MB of memory", bytes as f64 / 1e6),
            None => String::new(),
        };
        format!(
            "{}: {:.2} M parameters ({:.2} M in projections: {:?}), {} training tokens from {:.1} MB of text, vocabulary {}\n\
             {} steps of {} tokens on {} threads, {} ops, in {}{memory}",
            self.run.config.run.name,
            self.config.parameters() as f64 / 1e6,
            self.config.projection_parameters() as f64 / 1e6,
            self.config.quantization,
            self.prepared.train.len(),
            self.prepared.train.text_bytes() as f64 / 1e6,
            self.config.vocab_size,
            train.steps,
            self.run.tokens_per_step(),
            rayon::current_num_threads(),
            self.run.ops.name(),
            self.folder.root().display(),
        )
    }

    fn estimated_memory(&self) -> Option<usize> {
        let data = self.prepared.train.file_bytes() + self.prepared.validation.file_bytes();
        self.run.memory_of_run(&self.config, data)
    }

    /// What to say when a step cannot be taken.
    fn broken(&self, what: &str) -> String {
        let step = self.state.step + 1;
        match Latest::find(&self.folder) {
            Ok(latest) => format!(
                "step {step}: {what}; the last good checkpoint is {} (step {}): lower optimizer.learning_rate in {} and \
                 `bitnet-train resume {}`",
                latest.path.display(),
                latest.state.step,
                self.folder.config().display(),
                self.folder.root().display()
            ),
            Err(_) => format!("step {step}: {what}; there is no checkpoint yet: lower optimizer.learning_rate"),
        }
    }
}

/// Exports a checkpoint of a run: the newest, or that of `step`. Returns what looks wrong in the model, a sentence each.
///
/// # Errors
/// If there is no such checkpoint or the folder cannot be written.
pub fn export_run(root: &Path, step: Option<u64>, out: &Path) -> Result<Vec<String>> {
    let folder = RunFolder::open(root)?;
    let run = Run::of_folder(&folder.config())?;
    let latest = match step {
        Some(step) => {
            let path = checkpoint::path_of(&folder, step);
            let kept = checkpoint::list(&folder.checkpoints())?;
            ensure!(path.exists(), "{}: no checkpoint of step {step}; there are those of {kept:?}", root.display());
            Latest::read(path)?
        }
        None => Latest::find(&folder)?,
    };
    let tokenizer_json = bitnet_model::files::read_bounded(&folder.tokenizer(), 64 << 20)?;
    let tokenizer =
        BuiltTokenizer::from_json(tokenizer_json.clone()).with_context(|| folder.tokenizer().display().to_string())?;
    let config = run.model_config(tokenizer.vocab_size, tokenizer.eos)?;
    let parameters = load_parameters(&latest.path, &config)?;
    export(out, &config, &parameters, run.config.export.float_type, tokenizer_json)
}
