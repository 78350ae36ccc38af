//! How long messages are: a fixed length, or a distribution of lengths.

use std::fmt;
use std::str::FromStr;

use rand::Rng;
use rand::RngExt;

/// The longest payload, in bytes.
pub const SIZE_MAX: usize = 16 << 20;

/// Payload lengths in bytes: `64`, `16-1024` (each as likely), or `64:9,4096:1` (by weight).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes(Shape);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Shape {
    Fixed(usize),
    Uniform(usize, usize),
    /// Lengths and their weights; the sum of these is not zero.
    Weighted(Vec<(usize, u32)>),
}

impl Sizes {
    /// Every message is this long.
    pub fn fixed(len: usize) -> Self {
        Self(Shape::Fixed(len))
    }

    /// The shortest of them.
    pub fn min(&self) -> usize {
        match &self.0 {
            Shape::Fixed(len) => *len,
            Shape::Uniform(min, _) => *min,
            Shape::Weighted(list) => list.iter().map(|(len, _)| *len).min().unwrap_or(0),
        }
    }

    /// The longest of them.
    pub fn max(&self) -> usize {
        match &self.0 {
            Shape::Fixed(len) => *len,
            Shape::Uniform(_, max) => *max,
            Shape::Weighted(list) => list.iter().map(|(len, _)| *len).max().unwrap_or(0),
        }
    }

    /// Whether there is only one.
    pub fn is_fixed(&self) -> bool {
        self.min() == self.max()
    }

    /// One of them.
    pub fn draw(&self, random: &mut impl Rng) -> usize {
        match &self.0 {
            Shape::Fixed(len) => *len,
            Shape::Uniform(min, max) => random.random_range(*min..=*max),
            Shape::Weighted(list) => {
                let sum: u32 = list.iter().map(|(_, weight)| weight).sum();
                let mut at = random.random_range(0..sum);
                for (len, weight) in list {
                    if at < *weight {
                        return *len;
                    }
                    at -= weight;
                }
                self.max()
            }
        }
    }
}

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let len = |text: &str| match text.parse() {
            Ok(len) if len <= SIZE_MAX => Ok(len),
            _ => Err(format!("{text:?} is not a length of at most {SIZE_MAX}")),
        };
        if text.contains(':') {
            let mut list = Vec::new();
            let mut sum: u32 = 0;
            for part in text.split(',') {
                let (size, weight) = part.split_once(':').ok_or("wanted LEN:WEIGHT,…")?;
                let weight: u16 = weight
                    .parse()
                    .map_err(|_| format!("{weight:?} is not a weight"))?;
                list.push((len(size)?, weight.into()));
                sum = sum.saturating_add(weight.into());
            }
            if sum == 0 {
                return Err("the weights are zero".to_owned());
            }
            return Ok(Self(Shape::Weighted(list)));
        }
        match text.split_once('-') {
            None => Ok(Self(Shape::Fixed(len(text)?))),
            Some((min, max)) => {
                let (min, max) = (len(min)?, len(max)?);
                if min > max {
                    return Err(format!("{min} is more than {max}"));
                }
                Ok(Self(Shape::Uniform(min, max)))
            }
        }
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Shape::Fixed(len) => write!(f, "{len}"),
            Shape::Uniform(min, max) => write!(f, "{min}-{max}"),
            Shape::Weighted(list) => {
                let parts = list.iter().map(|(len, weight)| format!("{len}:{weight}"));
                f.write_str(&parts.collect::<Vec<_>>().join(","))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn what_is_written_is_read_and_nonsense_refused() {
        for text in ["64", "16-1024", "64:9,4096:1"] {
            let sizes: Sizes = text.parse().expect(text);
            assert_eq!(sizes.to_string(), text);
        }
        for bad in [
            "", "x", "2-1", "1:0", "1:1,2", "16777217", "-1", "1-", "1:70000",
        ] {
            assert!(bad.parse::<Sizes>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn drawn_lengths_follow_the_distribution() {
        let mut random = StdRng::seed_from_u64(1);
        let sizes: Sizes = "20-29".parse().expect("sizes");
        let mut seen = [0; 10];
        for _ in 0..10_000 {
            seen[sizes.draw(&mut random) - 20] += 1;
        }
        assert!(
            seen.iter().all(|&count| (800..1200).contains(&count)),
            "{seen:?}"
        );
        let sizes: Sizes = "64:9,4096:1".parse().expect("sizes");
        let long = (0..10_000)
            .filter(|_| sizes.draw(&mut random) == 4096)
            .count();
        assert!((800..1200).contains(&long), "{long}");
        assert_eq!(
            (sizes.min(), sizes.max(), sizes.is_fixed()),
            (64, 4096, false)
        );
    }
}
