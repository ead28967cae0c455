use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn item(sequence: u64, stream: u8, resume: bool, data_bytes: usize, after_position: u64) -> Item {
    let event = v1::NewEvent { data: vec![0; data_bytes].into(), ..Default::default() };
    let request = v1::AppendRequest {
        stream: format!("s-{stream}"),
        events: vec![event],
        after_position,
        ..Default::default()
    };
    Item { sequence, resume, partition: u32::from(stream % 3), request }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Ok,
    Failed,
    EarlierFailed,
}

/// One append as a test says it: what becomes of it if it is tried at all.
#[derive(Debug, Clone)]
struct Said {
    stream: u8,
    resume: bool,
    /// Fails its checks before it is queued.
    invalid: bool,
    succeeds: bool,
    large: bool,
    ahead: bool,
}

/// Each append of a stream waits for the one before it.
fn naive(said: &[Said]) -> Vec<Answer> {
    let mut failed = BTreeSet::new();
    said.iter()
        .map(|s| {
            let answer = match s {
                s if s.invalid => Answer::Failed,
                s if failed.contains(&s.stream) && !s.resume => Answer::EarlierFailed,
                s if s.succeeds => Answer::Ok,
                _ => Answer::Failed,
            };
            match answer {
                Answer::Ok => failed.remove(&s.stream),
                _ => failed.insert(s.stream),
            };
            answer
        })
        .collect()
}

/// Runs a unit as apply does; the order in which appends were tried goes to `tried`.
fn apply(unit: &Unit, said: &[Said], tried: &mut Vec<u64>) -> Vec<Vec<Answer>> {
    let run = |run: &Run| {
        let mut earlier_failed = false;
        let answers = run.chained().map(|(item, chained)| {
            let answer = if chained && earlier_failed {
                Answer::EarlierFailed
            } else {
                tried.push(item.sequence);
                if said[item.sequence as usize].succeeds { Answer::Ok } else { Answer::Failed }
            };
            earlier_failed = answer != Answer::Ok;
            answer
        });
        answers.collect()
    };
    unit.runs.iter().map(run).collect()
}

const NOW: u64 = 100;

fn said() -> impl Strategy<Value = Said> {
    let odds = |n: u32| prop::bool::weighted(f64::from(n) / 10.0);
    (0..5u8, odds(3), odds(1), odds(7), odds(1), odds(1)).prop_map(
        |(stream, resume, invalid, succeeds, large, ahead)| Said {
            stream,
            resume,
            invalid,
            succeeds,
            large,
            ahead,
        },
    )
}

proptest! {
    /// Whatever is in flight together, each stream's answers are those of one append at a time.
    #[test]
    fn answers_are_those_of_one_append_at_a_time(
        said in prop::collection::vec(said(), 0..80),
        steps in prop::collection::vec(0..10u8, 0..400),
    ) {
        let mut queue = AppendQueue::default();
        let mut answers = vec![None; said.len()];
        let mut answer = |sequence: u64, a: Answer| {
            assert!(answers[sequence as usize].replace(a).is_none(), "answered twice");
        };
        let (mut pushed, mut flying, mut tried) = (0, VecDeque::<Unit>::new(), Vec::new());
        // What the steps leave over is done in the end.
        let rest = [0u8, 4, 9].into_iter().cycle();
        for step in steps.into_iter().chain(rest) {
            match step {
                0..=3 if pushed < said.len() => {
                    let (s, sequence) = (&said[pushed], pushed as u64);
                    pushed += 1;
                    if s.invalid {
                        queue.fail(&format!("s-{}", s.stream)).unwrap();
                        answer(sequence, Answer::Failed);
                        continue;
                    }
                    let bytes = if s.large { 400 << 10 } else { 10 };
                    let after = if s.ahead { NOW + 1 } else { 1 };
                    let item = item(sequence, s.stream, s.resume, bytes, after);
                    if queue.push(item).unwrap() == Pushed::EarlierFailed {
                        answer(sequence, Answer::EarlierFailed);
                    }
                }
                0..=6 => {
                    let Some(unit) = queue.next_unit(NOW) else { continue };
                    prop_assert!(unit.appends() > 0);
                    prop_assert!(unit.after_position() <= NOW || unit.runs.len() == 1);
                    let streams = |u: &Unit| u.runs.iter().map(|r| r.stream.clone()).collect::<Vec<_>>();
                    let new: BTreeSet<_> = streams(&unit).into_iter().collect();
                    prop_assert_eq!(new.len(), unit.runs.len(), "one run of each stream");
                    prop_assert!(flying.iter().flat_map(streams).all(|s| !new.contains(&s)));
                    prop_assert!(unit.runs.iter().flat_map(|r| &r.items).all(|i| i.partition == unit.partition));
                    flying.push_back(unit);
                }
                _ => {
                    // Units end in any order.
                    let Some(unit) = (if step == 7 { flying.pop_back() } else { flying.pop_front() }) else {
                        if pushed == said.len() && queue.is_empty() { break }
                        continue;
                    };
                    let outcomes = apply(&unit, &said, &mut tried);
                    for (run, outcomes) in unit.runs.iter().zip(outcomes) {
                        for (item, outcome) in run.items.iter().zip(&outcomes) {
                            answer(item.sequence, *outcome);
                        }
                        for dropped in queue.finish(run, outcomes.last() != Some(&Answer::Ok)) {
                            answer(dropped.sequence, Answer::EarlierFailed);
                        }
                    }
                }
            }
        }
        prop_assert_eq!(queue.bytes, 0);
        let answers: Vec<_> = answers.into_iter().map(Option::unwrap).collect();
        prop_assert_eq!(&answers, &naive(&said));
        for stream in 0..5 {
            let order: Vec<_> = tried.iter().filter(|s| said[**s as usize].stream == stream).collect();
            prop_assert!(order.is_sorted(), "tried in order");
        }
        // Only streams that failed are remembered.
        let failed = queue.lanes.values().filter(|l| l.tail_failed).count();
        prop_assert_eq!(queue.lanes.len(), failed);
    }
}

#[test]
fn what_waits_for_a_stream_goes_as_one_chained_run() {
    let mut queue = AppendQueue::default();
    for n in 0..4 {
        queue.push(item(n, 0, n == 2, 10, 0)).unwrap();
        if n == 0 {
            let first = queue.next_unit(NOW).unwrap();
            assert_eq!(first.appends(), 1);
        }
    }
    assert_eq!(queue.next_unit(NOW), None, "one run at a time");
    let first = Run { stream: "s-0".into(), items: vec![item(0, 0, false, 10, 0)] };
    assert!(queue.finish(&first, false).is_empty());
    let unit = queue.next_unit(NOW).unwrap();
    let chained: Vec<_> = unit.runs[0].chained().map(|(i, c)| (i.sequence, c)).collect();
    assert_eq!(chained, [(1, false), (2, false), (3, true)]);
}

#[test]
fn a_call_holds_so_many_appends_and_bytes_and_no_more() {
    let mut queue = AppendQueue::default();
    let mut count = 0;
    while queue.has_room() {
        queue.push(item(count, (count % 200) as u8, false, 1, 0)).unwrap();
        count += 1;
    }
    assert_eq!(count as usize, APPENDS_MAX);
    let mut queue = AppendQueue::default();
    let mut count = 0;
    while queue.has_room() {
        queue.push(item(count, 0, false, 1 << 20, 0)).unwrap();
        count += 1;
    }
    assert_eq!(count, 16);
}

#[test]
fn a_call_whose_failures_cannot_be_remembered_must_end() {
    let mut queue = AppendQueue::default();
    for n in 0..LANES_MAX {
        queue.fail(&format!("s-{n}")).unwrap();
    }
    assert_eq!(queue.fail("one-more"), Err(TooManyLanes));
    assert_eq!(queue.fail("s-0"), Ok(()));
}
