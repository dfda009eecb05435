//! Which outer packets pass to pods that take them in themselves: the elements of `direct`.

use std::collections::BTreeSet;

use super::changes::Changes;
use super::elements::Element;
use super::nft::{self, NftError};
use super::pods::Pair;

/// The pairs that pass, and what of that is still to be written.
#[derive(Debug, Default)]
pub struct Direct {
    pairs: BTreeSet<Pair>,
    changes: Changes,
}

impl Direct {
    /// Lets packets pass to a pod, or takes them in again.
    pub fn set(&mut self, pair: Pair, passes: bool) {
        let (had, had_any) = (self.pairs.contains(&pair), self.has_any(pair));
        if passes {
            self.pairs.insert(pair);
        } else {
            self.pairs.remove(&pair);
        }
        let has_any = self.has_any(pair);
        self.changes.set(Element::Direct(pair.endpoint, pair.vip), had, passes);
        self.changes.set(Element::Direct(pair.endpoint, pair.endpoint), had_any, has_any);
    }

    fn has_any(&self, pair: Pair) -> bool {
        let next = self.pairs.range(Pair::first(pair.endpoint)..).next();
        next.is_some_and(|next| next.endpoint == pair.endpoint)
    }

    /// Moves what is to be written to `changes`.
    pub fn write(&mut self, changes: &mut Changes) {
        let Changes { gone, new } = std::mem::take(&mut self.changes);
        changes.gone.extend(gone);
        changes.new.extend(new);
    }

    /// Every element that they take. That much is written now.
    pub fn all(&mut self) -> impl Iterator<Item = Element> {
        self.changes = Changes::default();
        self.pairs.iter().flat_map(|Pair { endpoint, vip }| {
            [Element::Direct(*endpoint, *vip), Element::Direct(*endpoint, *endpoint)]
        })
    }
}

/// The pairs that the kernel's rules let pass.
///
/// # Errors
/// [`NftError`] where they cannot be listed.
pub fn in_kernel() -> Result<Vec<Pair>, NftError> {
    let mut pairs = Vec::new();
    for set in ["direct4", "direct6"] {
        pairs.extend(nft::set(set)?.into_iter().filter_map(|element| match element {
            Element::Direct(endpoint, vip) if endpoint != vip => Some(Pair { endpoint, vip }),
            _ => None,
        }));
    }
    Ok(pairs)
}
