//! Keys that cannot take effect, given the others: refused where a person wrote them, left out where the program writes.

use toml::{Table, Value};

use super::RunConfig;
use crate::optim::ScheduleConfig;

/// A key without effect, and why.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Idle {
    /// The key, with dots.
    pub key: &'static str,
    /// The setting that leaves it nothing to do, as a config says it.
    pub because: &'static str,
}

/// Every key that has no effect on a run of `config`, whether anybody wrote it or not.
pub(super) fn idle(config: &RunConfig) -> Vec<Idle> {
    let RunConfig { model, quantization, optimizer, schedule, evaluation, .. } = config;
    let no_sample = evaluation.sample_tokens == 0;
    let (one_stage, same_stages) = match schedule {
        ScheduleConfig::TwoStage { switch, second_peak, .. } => (*switch == 1.0, *second_peak == 1.0),
        _ => (false, false),
    };
    let (no_decay, no_fall) = match schedule {
        ScheduleConfig::ConstantThenDecay { decay_fraction, min_ratio, .. } => {
            (*decay_fraction == 0.0, *min_ratio == 1.0)
        }
        _ => (false, false),
    };
    let rules = [
        (quantization.weight == "none", "quantization.estimator", "quantization.weight = \"none\""),
        (model.init_from.is_some(), "model.init_std", "model.init_from"),
        (optimizer.weight_decay == 0.0, "optimizer.weight_decay_until", "optimizer.weight_decay = 0"),
        (one_stage, "schedule.second_peak", "schedule.switch = 1"),
        (same_stages, "schedule.switch", "schedule.second_peak = 1"),
        (no_decay, "schedule.min_ratio", "schedule.decay_fraction = 0"),
        (no_fall, "schedule.decay_fraction", "schedule.min_ratio = 1"),
        (no_sample, "evaluation.prompt", "evaluation.sample_tokens = 0"),
        (no_sample, "evaluation.temperature", "evaluation.sample_tokens = 0"),
    ];
    let rules = rules.into_iter().filter(|(holds, ..)| *holds);
    rules.map(|(_, key, because)| Idle { key, because }).collect()
}

impl Idle {
    /// What to say of it.
    pub fn sentence(&self) -> String {
        format!("`{}` has no effect with {}: leave one of the two out", self.key, self.because)
    }

    /// Whether a file with `--set` assignments to `assigned` may hold it: what the file says of a thing that an assignment turned
    /// off is dropped, as the keys of another type are.
    pub fn is_turned_off(&self, assigned: &[&str]) -> bool {
        let cause = self.because.split(' ').next().unwrap_or_default();
        let names = |key: &str| assigned.iter().any(|path| key == *path || key.starts_with(&format!("{path}.")));
        names(cause) && !names(self.key)
    }

    /// Whether `table` says something of it.
    pub fn is_in(&self, table: &Table) -> bool {
        get(table, self.key).is_some()
    }

    /// Whether `config` holds its default.
    pub fn is_default(&self, config: &RunConfig) -> bool {
        let printed = |config: &RunConfig| Table::try_from(config).ok();
        let Some(before) = printed(config) else { return false };
        let mut without = before.clone();
        self.remove_from(&mut without);
        let after = without.try_into::<RunConfig>().ok().as_ref().and_then(printed);
        after.is_some_and(|after| get(&after, self.key) == get(&before, self.key))
    }

    /// Removes it.
    pub fn remove_from(&self, table: &mut Table) {
        if let Some((section, key)) = self.key.split_once('.')
            && let Some(section) = table.get_mut(section).and_then(Value::as_table_mut)
        {
            section.remove(key);
        }
    }
}

fn get<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    let (section, key) = key.split_once('.')?;
    table.get(section)?.as_table()?.get(key)
}
