//! Merges sorted sources that give their items page by page. Pure.
use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, VecDeque};

/// Something that is sorted by its name.
pub trait Named {
    fn name(&self) -> &str;
}

/// What a merge has next.
#[derive(Debug, PartialEq)]
pub enum Next<I> {
    Item(I),
    /// Pages of these sources are needed first.
    Wanted(Vec<usize>),
    End,
}

/// The least item of a source.
struct Head<I> {
    item: I,
    source: usize,
}

impl<I: Named> Ord for Head<I> {
    fn cmp(&self, other: &Head<I>) -> Ordering {
        self.item.name().cmp(other.item.name()).then(self.source.cmp(&other.source))
    }
}

impl<I: Named> PartialOrd for Head<I> {
    fn partial_cmp(&self, other: &Head<I>) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<I: Named> PartialEq for Head<I> {
    fn eq(&self, other: &Head<I>) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<I: Named> Eq for Head<I> {}

#[derive(Debug)]
struct Source<I> {
    items: VecDeque<I>,
    ended: bool,
}

/// Gives the items of all sources in ascending order of their names.
pub struct Merge<I> {
    sources: Vec<Source<I>>,
    /// One head of each source that has any.
    heads: BinaryHeap<Reverse<Head<I>>>,
    /// Sources without a head that have not ended.
    wanted: Vec<usize>,
}

impl<I: Named> Merge<I> {
    pub fn new(sources: usize) -> Merge<I> {
        let source = || Source { items: VecDeque::new(), ended: false };
        Merge {
            sources: std::iter::repeat_with(source).take(sources).collect(),
            heads: BinaryHeap::new(),
            wanted: (0..sources).collect(),
        }
    }

    /// Sources whose next page is needed; each must be given.
    pub fn wanted(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.wanted)
    }

    /// The next page of a source. Without items, and not ended, it is asked again.
    pub fn give(&mut self, source: usize, items: Vec<I>, ended: bool) {
        if let Some(s) = self.sources.get_mut(source) {
            s.items.extend(items);
            s.ended = ended;
            self.refill(source);
        }
    }

    fn refill(&mut self, source: usize) {
        let Some(s) = self.sources.get_mut(source) else {
            return;
        };
        match s.items.pop_front() {
            Some(item) => self.heads.push(Reverse(Head { item, source })),
            None if s.ended => {}
            None => self.wanted.push(source),
        }
    }

    pub fn next(&mut self) -> Next<I> {
        if !self.wanted.is_empty() {
            return Next::Wanted(self.wanted());
        }
        let Some(Reverse(Head { item, source })) = self.heads.pop() else {
            return Next::End;
        };
        self.refill(source);
        Next::Item(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    impl Named for String {
        fn name(&self) -> &str {
            self
        }
    }

    proptest! {
        #[test]
        fn a_merge_is_the_sorted_whole(
            sources in prop::collection::vec(prop::collection::btree_set("[a-cé]{1,3}", 0..20), 0..6),
            page in 1..5usize,
            empty_pages in any::<bool>(),
        ) {
            let mut expected: Vec<String> = sources.iter().flatten().cloned().collect();
            expected.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
            let mut rest: Vec<VecDeque<String>> =
                sources.into_iter().map(|s| s.into_iter().collect()).collect();
            let mut merge = Merge::new(rest.len());
            let (mut got, mut asked) = (Vec::new(), 0);
            loop {
                match merge.next() {
                    Next::Item(item) => got.push(item),
                    Next::Wanted(wanted) => for source in wanted {
                        asked += 1;
                        // A page of deleted streams only is empty and not the end.
                        let take = if empty_pages && asked % 3 == 0 { 0 } else { page };
                        let take = take.min(rest[source].len());
                        let items: Vec<_> = rest[source].drain(..take).collect();
                        let ended = rest[source].is_empty() && items.is_empty();
                        merge.give(source, items, ended);
                    },
                    Next::End => break,
                }
            }
            prop_assert_eq!(got, expected);
        }
    }
}
