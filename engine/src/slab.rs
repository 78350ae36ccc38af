#![forbid(unsafe_code)]
//! Index and generation to slot, over the crate `slab`.
//!
//! A [`Key`] names one value for ever: a slot whose generations are used up is never used
//! again. This room knows nothing of what it stores.
//!
//! **Invariant:** `get(key)` is `Some` only for the value whose `insert` returned `key`.

use alloc::vec::Vec;

/// A value's identity: where it is, and which of the values that have been there it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Position in the slab.
    pub index: u32,
    /// How many values have been there before.
    pub generation: u32,
}

/// Slots that are kept whatever happens.
const TRIM_MIN: usize = 1024;

/// Bytes of slots from which on none are given back: that would hold the thread up.
const TRIM_LEN_MAX: usize = 8 * 1024 * 1024;

#[derive(Debug)]
struct Entry<T> {
    generation: u32,
    /// `None`: retired.
    value: Option<T>,
}

/// Values under keys.
#[derive(Debug)]
pub struct Slab<T> {
    entries: ::slab::Slab<Entry<T>>,
    /// By index, also of vacant slots: the generation of the next value there.
    generations: Vec<u32>,
    retired: usize,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            entries: ::slab::Slab::new(),
            generations: Vec::new(),
            retired: 0,
        }
    }
}

impl<T> Slab<T> {
    /// How many values there are.
    pub fn len(&self) -> usize {
        self.entries.len() - self.retired
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a value.
    pub fn insert(&mut self, value: T) -> Key {
        let vacant = self.entries.vacant_entry();
        let index = vacant.key();
        if index == self.generations.len() {
            self.generations.push(0);
        }
        let generation = self.generations[index];
        vacant.insert(Entry {
            generation,
            value: Some(value),
        });
        Key {
            index: u32::try_from(index).expect("fewer than 2^32 connections fit in memory"),
            generation,
        }
    }

    /// The value, unless it is gone.
    #[inline]
    pub fn get(&self, key: Key) -> Option<&T> {
        match self.entries.get(key.index as usize) {
            Some(entry) if entry.generation == key.generation => entry.value.as_ref(),
            _ => None,
        }
    }

    /// The value, unless it is gone.
    #[inline]
    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        match self.entries.get_mut(key.index as usize) {
            Some(entry) if entry.generation == key.generation => entry.value.as_mut(),
            _ => None,
        }
    }

    /// Every index in use is below.
    pub fn indexes(&self) -> u32 {
        self.generations.len() as u32
    }

    /// The key of the value that is at `index` now.
    #[inline]
    pub fn key_at(&self, index: u32) -> Option<Key> {
        let entry = self.entries.get(index as usize)?;
        entry.value.as_ref()?;
        Some(Key {
            index,
            generation: entry.generation,
        })
    }

    /// Takes the value out. From here on `key` is gone.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        self.get(key)?;
        let index = key.index as usize;
        match key.generation.checked_add(1) {
            Some(next) => {
                self.generations[index] = next;
                self.entries.remove(index).value
            }
            None => {
                // The keys of this slot are used up.
                self.retired += 1;
                self.entries[index].value.take()
            }
        }
    }

    /// Gives back the memory of vacant slots after the last value, if they are half of all and so
    /// few that it takes a fraction of a millisecond; the generations of their next values are kept.
    pub fn trim(&mut self) {
        let capacity = self.entries.capacity();
        let is_short = capacity.saturating_mul(size_of::<Entry<T>>()) <= TRIM_LEN_MAX;
        if capacity >= TRIM_MIN && is_short && self.entries.len() <= capacity / 2 {
            self.entries.shrink_to_fit();
        }
    }

    /// The keys of all values, by index.
    pub fn keys(&self) -> impl Iterator<Item = Key> {
        self.entries.iter().filter_map(|(index, entry)| {
            entry.value.as_ref()?;
            Some(Key {
                index: index as u32,
                generation: entry.generation,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_is_gone_after_the_value_is_removed_and_its_slot_used_again() {
        let mut slab = Slab::default();
        let first = slab.insert("first");
        assert_eq!(slab.remove(first), Some("first"));
        let second = slab.insert("second");
        assert_eq!(second.index, first.index);
        assert_eq!(slab.get(first), None);
        assert_eq!(slab.get_mut(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get(second), Some(&"second"));
        assert_eq!(slab.key_at(first.index), Some(second));
    }

    #[test]
    fn slot_is_retired_when_its_generations_are_used_up() {
        let mut slab = Slab::default();
        let first = slab.insert(0);
        slab.remove(first);
        slab.generations[0] = u32::MAX;
        let last = slab.insert(1);
        assert_eq!((last.index, last.generation), (0, u32::MAX));
        assert_eq!(slab.remove(last), Some(1));
        assert_eq!(
            (slab.len(), slab.get(last), slab.key_at(0)),
            (0, None, None)
        );
        assert_eq!(slab.remove(last), None);
        assert_eq!(slab.insert(2).index, 1);
        assert_eq!(slab.keys().count(), 1);
    }

    #[test]
    fn trimmed_slots_keep_their_generations() {
        let mut slab = Slab::default();
        let keys: Vec<Key> = (0..10_000).map(|value| slab.insert(value)).collect();
        for key in &keys[10..] {
            slab.remove(*key);
        }
        slab.trim();
        assert!(slab.entries.capacity() < TRIM_MIN);
        let again: Vec<Key> = (0..10_000).map(|value| slab.insert(value)).collect();
        assert!(keys[10..].iter().all(|key| slab.get(*key).is_none()));
        assert!(keys[..10].iter().all(|key| slab.get(*key).is_some()));
        assert!(again.iter().all(|key| slab.get(*key).is_some()));
    }
}
