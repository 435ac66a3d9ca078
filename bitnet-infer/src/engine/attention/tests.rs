//! Attention against softmax in f64, for every type of cache, and against itself however it is cut.

use proptest::prelude::*;

use super::*;
use crate::engine::cache::KvType;
use crate::engine::random::RandomModel;

/// Keys and values of one layer and the queries of its last tokens.
struct Case {
    config: ModelConfig,
    seen: usize,
    queries: usize,
    q_tq: Vec<f32>,
    k_tk: Vec<f32>,
    v_tk: Vec<f32>,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let config = &self.config;
        let heads = (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
        write!(f, "heads {heads:?}, {} queries at the end of {} positions", self.queries, self.seen)
    }
}

fn case() -> impl Strategy<Value = Case> {
    let heads = (1usize..4, 1usize..5, (1usize..35).prop_map(|half| 2 * half));
    // Long ones reach over several spans.
    let seen = prop_oneof![1usize..200, 900usize..1300];
    (heads, seen, 1usize..110, any::<u32>()).prop_map(|((kv_heads, group, d), seen, queries, seed)| {
        let mut config = RandomModel::named("tiny").expect("known").config;
        (config.num_key_value_heads, config.num_attention_heads, config.head_dim) = (kv_heads, kv_heads * group, d);
        (config.num_hidden_layers, config.max_position_embeddings) = (1, 2048);
        let queries = queries.min(seen);
        let value = |i: usize| ((i as f32 + seed as f32 * 1e-6) * 12.9898).sin() * 2.0;
        let values = |n: usize, first: usize| (first..first + n).map(value).collect::<Vec<f32>>();
        let (q_len, k_len) = (queries * kv_heads * group * d, seen * kv_heads * d);
        let (q_tq, k_tk, v_tk) = (values(q_len, 3), values(k_len, 17), values(k_len, 71));
        Case { config, seen, queries, q_tq, k_tk, v_tk }
    })
}

impl Case {
    fn cache(&self, kv_type: KvType) -> KvCache {
        let mut cache = KvCache::with_type(&self.config, self.seen, kv_type).expect("fits");
        let width = self.config.key_value_size();
        // In two pieces, which meet within a block.
        let cut = self.seen / 3 * width;
        cache.write(0, &self.k_tk[..cut], &self.v_tk[..cut]);
        cache.advance(cut / width);
        cache.write(0, &self.k_tk[cut..], &self.v_tk[cut..]);
        cache.advance(self.seen - cut / width);
        cache
    }

    fn attend(&self, cache: &KvCache, vectors: Vectors, rows: std::ops::Range<usize>) -> Vec<f32> {
        let q = self.config.query_size();
        let mut out = vec![0f32; rows.len() * q];
        let start = self.seen - self.queries + rows.start;
        let batch = [Queries { cache, first_row: 0, tokens: rows.len(), start }];
        let attention = Attention { config: &self.config, vectors, layer: 0 };
        attention.run(&batch, &self.q_tq[rows.start * q..rows.end * q], &mut out);
        out
    }

    /// For each query and head the exact output, and how far from it a cache may lead whose keys and values are off by
    /// `k_error` and `v_error` of a row of them.
    fn exact(&self, error: impl Fn(&[f32]) -> f64) -> Vec<(Vec<f64>, f64)> {
        let (d, kv_heads) = (self.config.head_dim, self.config.num_key_value_heads);
        let (heads, k) = (self.config.num_attention_heads, self.config.key_value_size());
        let scale = 1.0 / (d as f64).sqrt();
        let mut all = Vec::new();
        for (i, q) in self.q_tq.chunks_exact(d).enumerate() {
            let (token, head) = (i / heads, i % heads);
            let seen = self.seen - self.queries + token + 1;
            let kv_head = head / (heads / kv_heads);
            let row = |rows: &'_ [f32], j: usize| rows[j * k + kv_head * d..][..d].to_vec();
            let q_sum: f64 = q.iter().map(|&x| f64::from(x).abs()).sum();
            let mut scores = Vec::with_capacity(seen);
            // The largest error of a score, of a value, and the largest value.
            let (mut score_error, mut v_error, mut v_largest) = (0f64, 0f64, 0f64);
            for j in 0..seen {
                let (key, value) = (row(&self.k_tk, j), row(&self.v_tk, j));
                scores.push(scale * q.iter().zip(&key).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>());
                score_error = score_error.max(scale * q_sum * error(&key));
                v_error = v_error.max(error(&value));
                v_largest = value.iter().fold(v_largest, |largest, &x| largest.max(f64::from(x).abs()));
            }
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
            let mut out = vec![0f64; d];
            for (j, score) in scores.iter().enumerate() {
                let weight = (score - largest).exp() / total;
                out.iter_mut().zip(row(&self.v_tk, j)).for_each(|(out, v)| *out += weight * f64::from(v));
            }
            // Scores off by e change each weight by a factor between exp(-2e) and exp(2e).
            let bound = ((2.0 * score_error).exp() - 1.0) * (v_largest + v_error) + v_error;
            all.push((out, bound));
        }
        all
    }

    fn check(&self, kv_type: KvType, error: impl Fn(&[f32]) -> f64) -> Result<(), TestCaseError> {
        let cache = self.cache(kv_type);
        let widest = Vectors::supported().pop().expect("portable");
        let found = self.attend(&cache, widest, 0..self.queries);
        for (found, (exact, bound)) in found.chunks_exact(self.config.head_dim).zip(self.exact(error)) {
            for (found, exact) in found.iter().zip(exact) {
                let distance = (f64::from(*found) - exact).abs();
                prop_assert!(distance <= bound + F32_ROUNDING, "{kv_type}: {found}, exactly {exact}, bound {bound}");
            }
        }
        Ok(())
    }
}

/// What f32 sums of numbers up to 2 may be off by here.
const F32_ROUNDING: f64 = 2e-5;

fn absmax(row: &[f32]) -> f64 {
    row.iter().fold(0f64, |largest, &x| largest.max(f64::from(x).abs()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn it_is_softmax_in_f64(case in case()) {
        case.check(KvType::F32, |_| 0.0)?;
        // Half a unit of an 11-bit mantissa, or of the smallest number.
        case.check(KvType::F16, |row| absmax(row) * 2f64.powi(-11) + 2f64.powi(-25))?;
        // Half a step.
        case.check(KvType::Int8, |row| absmax(row).max(1e-5) / 127.0 * 0.5001)?;
    }

    #[test]
    fn cutting_and_sharing_out_change_no_bit(case in case(), cut in 0usize..110, kv_type in prop::sample::select(&KvType::ALL[..])) {
        let cache = case.cache(kv_type);
        let with = |threads: usize, vectors: Vectors, cuts: &[usize]| -> Vec<f32> {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
            pool.install(|| cuts.windows(2).flat_map(|cut| case.attend(&cache, vectors, cut[0]..cut[1])).collect())
        };
        let portable = Vectors::supported()[0];
        // One thread takes whole tasks if there are four of them, many threads take spans.
        let expected = with(1, portable, &[0, case.queries]);
        let one_by_one: Vec<usize> = (0..=case.queries).collect();
        for vectors in Vectors::supported() {
            prop_assert!(with(1, vectors, &[0, case.queries]) == expected, "{:?}", vectors);
            prop_assert!(with(3, vectors, &[0, cut.min(case.queries), case.queries]) == expected, "{:?} cut", vectors);
            prop_assert!(with(16, vectors, &[0, case.queries]) == expected, "{:?} spans", vectors);
        }
        let widest = Vectors::supported().pop().expect("portable");
        prop_assert!(with(2, widest, &one_by_one) == expected, "one by one");
    }
}
