//! `export`: of which prefixes a peer is told, and with what.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use sheave_bgp::{Community, ExportPolicy, LargeCommunity};

use super::import::{Filter, short_or_map};
use super::{Communities, reader};
use crate::plan::AnnouncementKind;

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Written {
    #[serde(deserialize_with = "some")]
    prefixes: Option<Vec<Filter>>,
    #[serde(deserialize_with = "some")]
    kinds: Option<BTreeSet<AnnouncementKind>>,
    communities: Communities,
    local_pref: Option<u32>,
    med: Option<u32>,
    #[serde(deserialize_with = "prepend")]
    as_path_prepend: u8,
}

/// `export` of a peer: `all`, `none`, or what is announced and what is changed of it.
pub(super) fn policy<'de, D: Deserializer<'de>>(d: D) -> Result<ExportPolicy, D::Error> {
    let written = short_or_map(d, "`all`, `none`, or a map such as {med: 50}", |text| match text {
        "all" | "" => Ok(Written::default()),
        "none" => Ok(Written { kinds: Some(BTreeSet::new()), ..Written::default() }),
        _ => {
            Err(format!("`{text}` is neither `all` nor `none` nor a map such as {{prefixes: [10.0.0.0/8]}}"))
        }
    })?;
    let Written { prefixes, kinds, communities, local_pref, med, as_path_prepend } = written;
    let large = |(global, data1, data2)| LargeCommunity { global, data1, data2 };
    Ok(ExportPolicy {
        prefixes: prefixes.map(|prefixes| prefixes.into_iter().map(|Filter(filter)| filter).collect()),
        kinds: kinds.map(|kinds| kinds.into_iter().map(AnnouncementKind::number).collect()),
        communities: communities.standard.into_iter().map(Community).collect(),
        large_communities: communities.large.into_iter().map(large).collect(),
        local_pref,
        med,
        as_path_prepend,
    })
}

/// A list that is not empty: nothing would be announced.
fn some<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default + PartialEq>(
    d: D,
) -> Result<Option<T>, D::Error> {
    let listed = Option::<T>::deserialize(d)?;
    if listed.as_ref() == Some(&T::default()) {
        return Err(D::Error::custom(
            "lists none, so nothing would be announced: list some, or write `export: none`",
        ));
    }
    Ok(listed)
}

fn prepend<'de, D: Deserializer<'de>>(d: D) -> Result<u8, D::Error> {
    reader::prepend(&u8::deserialize(d)?.to_string()).map_err(D::Error::custom)
}
