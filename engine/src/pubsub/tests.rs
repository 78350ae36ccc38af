use std::collections::BTreeMap;
use std::collections::BTreeSet;

use super::*;

fn key(index: u32) -> Key {
    Key {
        index,
        generation: 0,
    }
}

/// Delivers what is pending: who gets what, in order.
fn deliver(pubsub: &mut PubSub<u32>) -> BTreeMap<u32, Vec<u32>> {
    let mut got: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    let pending = pubsub.take_pending();
    for run in PubSub::runs(&pending) {
        for start in (0..PubSub::end(run)).step_by(2) {
            for (key, publications) in pubsub.subscribers(run, start..start + 2) {
                let others = publications.iter().filter(|p| p.except != Some(key));
                got.entry(key.index)
                    .or_default()
                    .extend(others.map(|p| p.message));
            }
        }
    }
    pubsub.delivered(pending);
    got.retain(|_, got| !got.is_empty());
    got
}

#[test]
fn publication_is_for_those_who_had_subscribed_and_stay() {
    let counts = Arc::new(TopicCounts::default());
    let mut pubsub = PubSub::new(Arc::clone(&counts));
    let mut lists: Vec<Subscriptions> = (0..4).map(|_| Subscriptions::default()).collect();
    assert_eq!(pubsub.publish("a", 0, None), 0);
    for index in 0..3 {
        assert!(pubsub.subscribe(key(index), &mut lists[index as usize], "a"));
        assert!(!pubsub.subscribe(key(index), &mut lists[index as usize], "a"));
    }
    assert_eq!((pubsub.subscriber_count("a"), counts.get("a")), (3, 3));
    assert_eq!(pubsub.publish("a", 1, None), 3);
    // One comes and one goes before it is delivered; the one that goes comes again.
    pubsub.subscribe(key(3), &mut lists[3], "a");
    pubsub.unsubscribe(&mut lists[0], "a");
    pubsub.unsubscribe(&mut lists[1], "a");
    pubsub.subscribe(key(1), &mut lists[1], "a");
    assert_eq!(pubsub.publish("a", 2, Some(key(2))), 3);
    let want = BTreeMap::from([(1, vec![2]), (2, vec![1]), (3, vec![2])]);
    assert_eq!(deliver(&mut pubsub), want);
    for list in &mut lists {
        pubsub.unsubscribe_all(list);
    }
    assert_eq!(pubsub.publish("a", 3, None), 0);
    assert!(pubsub.topics.is_empty() && pubsub.subscriptions.is_empty());
    assert!(pubsub.names.is_empty());
    assert_eq!(
        format!("{counts:?}"),
        format!("{:?}", TopicCounts::default())
    );
}

#[test]
fn subscriptions_match_a_model_whatever_happens_in_between() {
    for seed in 0..200_u8 {
        let mut state = u64::from(seed);
        let mut chance = move |below: u32| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) as u32 % below
        };
        let mut pubsub = PubSub::new(Arc::default());
        let mut lists: Vec<Subscriptions> = (0..8).map(|_| Subscriptions::default()).collect();
        // Who has subscribed to what since which publication, and who owes whom what.
        let mut model: BTreeSet<(u32, u32)> = BTreeSet::new();
        let mut owed: BTreeMap<u32, Vec<(u32, u32)>> = BTreeMap::new();
        for number in 0..400 {
            let (who, topic) = (chance(8), chance(3));
            let (list, name) = (&mut lists[who as usize], topic.to_string());
            match chance(7) {
                0..3 => {
                    let is_new = pubsub.subscribe(key(who), list, &name);
                    assert_eq!(is_new, model.insert((who, topic)));
                }
                3 => {
                    let was_there = pubsub.unsubscribe(list, &name);
                    assert_eq!(was_there, model.remove(&(who, topic)));
                    owed.entry(who).or_default().retain(|&(t, _)| t != topic);
                }
                4 if chance(4) == 0 => {
                    pubsub.unsubscribe_all(list);
                    model.retain(|&(other, _)| other != who);
                    owed.remove(&who);
                }
                4 | 5 => {
                    let except = Some(who).filter(|_| chance(2) == 0);
                    pubsub.publish(&name, number, except.map(key));
                    for &(other, _) in model.iter().filter(|&&(_, t)| t == topic) {
                        if Some(other) != except {
                            owed.entry(other).or_default().push((topic, number));
                        }
                    }
                }
                _ => {
                    let mut want: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
                    for (who, owed) in std::mem::take(&mut owed) {
                        if !owed.is_empty() {
                            want.insert(who, owed.into_iter().map(|(_, n)| n).collect());
                        }
                    }
                    assert_eq!(deliver(&mut pubsub), want, "seed {seed}");
                }
            }
            for topic in 0..3 {
                let count = model.iter().filter(|&&(_, t)| t == topic).count();
                assert_eq!(pubsub.subscriber_count(&topic.to_string()), count);
                assert_eq!(pubsub.counts.get(&topic.to_string()), count);
            }
            for (who, list) in lists.iter().enumerate() {
                let count = model.iter().filter(|&&(w, _)| w as usize == who).count();
                assert_eq!((list.count(), list.is_empty()), (count, count == 0));
            }
        }
    }
}
