//! The applied mark: how far a database is, written with the effects themselves.
use super::keys::{self, decode_value, encode_value};
use super::store::{Batch, Order, Store, StoreError};
use bytes::Bytes;
use ringfold_proto::internal::{AppliedRecord, MembershipRecord};

/// How far a replica's database is, read from inside.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AppliedMark {
    pub index: u64,
    pub term: u64,
    pub last_position: u64,
    /// BLAKE3 chain over the events applied.
    pub chain: [u8; 32],
    pub events: u64,
    /// Encoded `ringfold.internal.v1.Membership` of the last change applied, and its index.
    pub membership: Option<(u64, Vec<u8>)>,
}

/// The mark of a database; `None` where nothing was ever written.
pub fn load_mark(store: &dyn Store) -> Result<Option<AppliedMark>, StoreError> {
    // One scan over two neighbours: they belong together, whatever is written meanwhile.
    let (mut applied, mut membership) = (None, None);
    let end = [keys::tag::MEMBERSHIP + 1];
    store.scan(keys::APPLIED, &end, Order::Ascending, &mut |key, value| {
        let value = Bytes::copy_from_slice(value);
        match key {
            keys::APPLIED => applied = Some(decode_value::<AppliedRecord>(value)),
            keys::MEMBERSHIP => membership = Some(decode_value::<MembershipRecord>(value)),
            _ => {}
        }
        true
    })?;
    let error = |e| StoreError::new(store.path(), "read", e);
    let Some(applied) = applied.transpose().map_err(error)? else {
        return Ok(None);
    };
    let membership = membership.transpose().map_err(error)?;
    Ok(Some(AppliedMark {
        index: applied.index,
        term: applied.term,
        last_position: applied.last_position,
        chain: chain_of(store, &applied)?,
        events: applied.events,
        membership: membership.map(|m| (m.index, m.membership.into())),
    }))
}

/// Adds a mark to a batch. For the meta group: partitions keep more in theirs.
pub fn put_mark(batch: &mut Batch, mark: &AppliedMark) {
    let record = AppliedRecord {
        index: mark.index,
        term: mark.term,
        last_position: mark.last_position,
        chain: Bytes::copy_from_slice(&mark.chain),
        events: mark.events,
        ..Default::default()
    };
    put(batch, keys::APPLIED, &record);
    if let Some((index, membership)) = &mark.membership {
        put_membership(batch, *index, membership);
    }
}

pub(super) fn put_membership(batch: &mut Batch, index: u64, membership: &[u8]) {
    let membership = Bytes::copy_from_slice(membership);
    put(batch, keys::MEMBERSHIP, &MembershipRecord { index, membership });
}

pub(super) fn put(batch: &mut Batch, key: &[u8], message: &impl prost::Message) {
    batch.put_with(|k| k.extend_from_slice(key), |v| encode_value(v, message));
}

pub(super) fn load<M: prost::Message + Default>(
    store: &dyn Store,
    key: &[u8],
) -> Result<Option<M>, StoreError> {
    let value = store.get(key)?;
    value.map(decode_value).transpose().map_err(|e| StoreError::new(store.path(), "read", e))
}

pub(super) fn chain_of(store: &dyn Store, applied: &AppliedRecord) -> Result<[u8; 32], StoreError> {
    applied.chain[..].try_into().map_err(|_| {
        StoreError::new(store.path(), "read", "the chain in its applied mark is not 32 bytes long")
    })
}
