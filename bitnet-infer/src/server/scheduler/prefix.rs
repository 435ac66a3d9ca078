//! Keys and values of texts that were read before, shared by every text that begins alike.
//!
//! A tree: each node is a page of tokens behind the pages of its ancestors. Only the last page of a text may be partly filled.
//! Keys and values are the same whatever else was computed with them, so sharing them changes no text.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;

use crate::engine::{KvCache, PAGE_TOKENS, Page};

/// Pages of texts, the least recently used given up first.
#[derive(Default)]
pub struct PrefixCache {
    nodes: HashMap<u64, Node>,
    roots: Children,
    /// Nodes that none builds upon, the least recently used first.
    leaves: BTreeSet<(u64, u64)>,
    next_id: u64,
    clock: u64,
    /// Leaves that were looked at to find one that can be given up.
    #[cfg(test)]
    looks: std::cell::Cell<usize>,
}

/// Nodes by their tokens, in order: those that begin alike are neighbours.
type Children = BTreeMap<Box<[u32]>, u64>;

struct Node {
    parent: Option<u64>,
    tokens: Box<[u32]>,
    page: Page,
    children: Children,
    used: u64,
}

impl PrefixCache {
    /// Gives `cache`, which must be empty, as much of the beginning of `tokens` as is known, all but the last token at most
    /// (its logits are not kept). Returns how many tokens that are.
    pub fn restore(&mut self, tokens: &[u32], cache: &mut KvCache) -> usize {
        let wanted = &tokens[..tokens.len().saturating_sub(1).min(cache.capacity())];
        self.clock += 1;
        let mut at = None;
        let mut done = 0;
        while let Some(&id) = wanted.get(done..done + PAGE_TOKENS).and_then(|page| self.children(at).get(page)) {
            self.take(id, PAGE_TOKENS, cache);
            (at, done) = (Some(id), done + PAGE_TOKENS);
        }
        let rest = &wanted[done..];
        let common = |page: &[u32]| page.iter().zip(rest).take_while(|(a, b)| a == b).count();
        // Of pages in order, one before or behind the place of `rest` has most in common with it.
        let children = self.children(at);
        let before = children.range::<[u32], _>((Bound::Unbounded, Bound::Included(rest))).next_back();
        let behind = children.range::<[u32], _>((Bound::Excluded(rest), Bound::Unbounded)).next();
        let best = before.into_iter().chain(behind).map(|(page, &id)| (common(page), id)).max();
        if let Some((common, id)) = best.filter(|(common, _)| *common >= LEAST_TOKENS) {
            self.take(id, common, cache);
            done += common;
        }
        done
    }

    /// Keeps the pages of `cache`, which holds `tokens`; the last one too if it is not full and `partly` says so.
    pub fn keep(&mut self, tokens: &[u32], cache: &KvCache, partly: bool) {
        self.clock += 1;
        let mut at = None;
        for (tokens, page) in tokens[..cache.len()].chunks(PAGE_TOKENS).zip(cache.pages()) {
            if tokens.len() < PAGE_TOKENS && !partly {
                break;
            }
            let id = match self.children(at).get(tokens) {
                Some(&id) => id,
                None => self.insert(at, tokens, page),
            };
            self.touch(id);
            at = Some(id);
        }
    }

    /// Gives up the page that was not used for longest, of those that nobody else holds and none builds upon. Returns whether
    /// there was one. Besides the page itself it looks at pages that texts hold which are worked on, whatever else is kept.
    pub fn evict(&mut self) -> bool {
        let Some(id) = self.idle_leaves().next() else { return false };
        self.remove(id);
        true
    }

    /// Whether so many pages could be given up, one after the other: those that neither anybody holds nor anything builds upon
    /// that is held. It looks no further than that.
    pub fn can_give_up(&self, pages: usize) -> bool {
        let mut found = 0;
        // Children that could be given up, of each page that has some.
        let mut gone: HashMap<u64, usize> = HashMap::new();
        let mut leaves = self.idle_leaves();
        while found < pages {
            let Some(mut id) = leaves.next() else { return false };
            found += 1;
            while let Some((above, node)) = self.parent(id) {
                let gone = gone.entry(above).or_default();
                *gone += 1;
                if *gone < node.children.len() || node.page.is_shared() {
                    break;
                }
                found += 1;
                id = above;
            }
        }
        true
    }

    /// Nodes that can be given up now, the least recently used first.
    fn idle_leaves(&self) -> impl Iterator<Item = u64> {
        self.leaves.iter().map(|&(_, id)| id).filter(|id| {
            #[cfg(test)]
            self.looks.set(self.looks.get() + 1);
            self.nodes.get(id).is_some_and(|node| !node.page.is_shared())
        })
    }

    fn parent(&self, id: u64) -> Option<(u64, &Node)> {
        let above = self.nodes.get(&id)?.parent?;
        self.nodes.get(&above).map(|node| (above, node))
    }

    /// A node has been used.
    fn touch(&mut self, id: u64) {
        if let Some(node) = self.nodes.get_mut(&id) {
            if self.leaves.remove(&(node.used, id)) {
                self.leaves.insert((self.clock, id));
            }
            node.used = self.clock;
        }
    }

    /// Pages kept.
    pub fn pages(&self) -> usize {
        self.nodes.len()
    }

    /// Gives up everything.
    pub fn clear(&mut self) {
        self.nodes.clear();
        self.roots.clear();
        self.leaves.clear();
    }

    fn children(&self, of: Option<u64>) -> &Children {
        of.and_then(|id| self.nodes.get(&id)).map_or(&self.roots, |node| &node.children)
    }

    fn children_mut(&mut self, of: Option<u64>) -> &mut Children {
        match of.and_then(|id| self.nodes.get_mut(&id)) {
            Some(node) => &mut node.children,
            None => &mut self.roots,
        }
    }

    fn take(&mut self, id: u64, tokens: usize, cache: &mut KvCache) {
        self.touch(id);
        if let Some(node) = self.nodes.get(&id) {
            cache.share(&node.page, tokens);
        }
    }

    fn insert(&mut self, parent: Option<u64>, tokens: &[u32], page: &Page) -> u64 {
        // What this page holds all of is no longer needed.
        let children = self.children(parent);
        let shorter: Vec<u64> =
            (1..tokens.len()).filter_map(|length| children.get(&tokens[..length]).copied()).collect();
        shorter.into_iter().for_each(|id| self.remove(id));
        let id = self.next_id;
        self.next_id += 1;
        let tokens: Box<[u32]> = tokens.into();
        self.children_mut(parent).insert(tokens.clone(), id);
        if let Some((above, node)) = parent.and_then(|id| self.nodes.get(&id).map(|node| (id, node))) {
            self.leaves.remove(&(node.used, above));
        }
        self.leaves.insert((self.clock, id));
        let node = Node { parent, tokens, page: page.clone(), children: Children::new(), used: self.clock };
        self.nodes.insert(id, node);
        id
    }

    /// Gives up a node that none builds upon.
    fn remove(&mut self, id: u64) {
        let Some(node) = self.nodes.remove(&id) else { return };
        self.leaves.remove(&(node.used, id));
        let above = node.parent;
        let siblings = self.children_mut(above);
        siblings.remove(&node.tokens);
        if siblings.is_empty()
            && let Some((above, node)) = above.and_then(|id| self.nodes.get(&id).map(|node| (id, node)))
        {
            self.leaves.insert((node.used, above));
        }
    }
}

/// A page that begins alike is worth copying from so many tokens on.
const LEAST_TOKENS: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{KvType, LogitsFor, Model, PageCount, RandomModel};
    use proptest::prelude::*;

    fn model() -> Model {
        let shape = RandomModel::named("tiny").expect("known");
        shape.build(crate::kernels::best().expect("a kernel")).expect("a model")
    }

    fn read(
        model: &Model,
        count: &PageCount,
        tokens: &[u32],
        known: Option<&mut PrefixCache>,
    ) -> (KvCache, usize, Vec<f32>) {
        let mut cache = KvCache::with_type(model.config(), 256, KvType::F32).expect("fits").counted_by(count);
        let done = known.map_or(0, |known| known.restore(tokens, &mut cache));
        let logits = model.forward(&tokens[done..], &mut cache, LogitsFor::Last).expect("runs");
        (cache, done, logits)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]

        /// Whatever is shared, given up and read again, the logits are those of a text read alone.
        #[test]
        fn sharing_changes_no_bit(
            texts in proptest::collection::vec((proptest::collection::vec(0usize..3, 1..4), 0usize..70, any::<bool>()), 1..8),
            evict_every in 1usize..4,
        ) {
            let model = model();
            let (count, mut known) = (PageCount::default(), PrefixCache::default());
            for (round, (parts, rest, partly)) in texts.into_iter().enumerate() {
                // Texts of a few parts, so that many begin alike and part ways anywhere.
                let mut tokens: Vec<u32> = parts.iter().flat_map(|&part| (0..50).map(move |i| (i * 7 + part as u32 * 13) % 200)).collect();
                tokens.extend((0..rest as u32).map(|i| i % 11));
                let (cache, done, logits) = read(&model, &count, &tokens, Some(&mut known));
                let (_, _, alone) = read(&model, &PageCount::default(), &tokens, None);
                prop_assert!(done < tokens.len());
                prop_assert!(logits == alone, "{} of {} tokens were known", done, tokens.len());
                known.keep(&tokens, &cache, partly);
                if round % evict_every == 0 {
                    known.evict();
                }
                drop(cache);
                prop_assert_eq!(count.now(), known.pages());
                prop_assert!(known.can_give_up(known.pages()) && !known.can_give_up(known.pages() + 1));
            }
            while known.evict() {}
            prop_assert_eq!((known.pages(), count.now()), (0, 0));
        }
    }

    #[test]
    fn what_is_in_use_stays_and_the_rest_goes_in_the_order_of_use() {
        let (model, count, mut known) = (model(), PageCount::default(), PrefixCache::default());
        let texts: Vec<Vec<u32>> = (0..3).map(|text| (0..130).map(|i| (i + text * 70) % 200).collect()).collect();
        for text in &texts {
            let (cache, ..) = read(&model, &count, text, Some(&mut known));
            known.keep(text, &cache, false);
        }
        assert_eq!((known.pages(), count.now()), (6, 6));
        // The first text is used again and held on to.
        let (held, done, _) = read(&model, &count, &texts[0], Some(&mut known));
        assert_eq!(done, 128);
        assert!(known.can_give_up(4) && !known.can_give_up(5));
        while known.evict() {}
        assert_eq!(known.pages(), 2);
        assert_eq!(read(&model, &count, &texts[0], Some(&mut known)).1, 128);
        assert_eq!(read(&model, &count, &texts[1], Some(&mut known)).1, 0);
        drop(held);
        assert!(known.evict() && known.evict() && !known.evict());
    }

    /// One page after the other, the least recently used first, without a look at the rest.
    #[test]
    fn giving_up_a_page_does_not_look_at_all_the_others() {
        let (model, count, mut known) = (model(), PageCount::default(), PrefixCache::default());
        let texts: Vec<Vec<u32>> =
            (0..300u32).map(|text| (0..130).map(|i| (i * 3 + text * (1 + i % 2)) % 256).collect()).collect();
        let mut held = Vec::new();
        for (number, text) in texts.iter().enumerate() {
            let (cache, ..) = read(&model, &count, text, Some(&mut known));
            known.keep(text, &cache, false);
            if number % 75 == 0 {
                held.push(cache);
            }
        }
        let (kept, in_use) = (known.pages(), 2 * held.len());
        assert!(kept > 500, "{kept} pages");
        assert!(known.can_give_up(kept - in_use) && !known.can_give_up(kept - in_use + 1));
        known.looks.set(0);
        assert!(known.can_give_up(10));
        assert!(known.looks.get() <= 10 + held.len(), "{} looks for ten pages", known.looks.get());
        let mut evicted = 0;
        loop {
            known.looks.set(0);
            if !known.evict() {
                break;
            }
            evicted += 1;
            assert!(known.looks.get() <= 1 + held.len(), "{} looks for one page of {kept}", known.looks.get());
        }
        assert_eq!((evicted, known.pages()), (kept - in_use, in_use));
    }
}
