//! Bytes in JSON, encoded as Go does: standard base64 with padding.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serializer, de::Error};
use zeroize::Zeroizing;

pub(super) fn serialize<S: Serializer>(bytes: &impl AsRef<[u8]>, serializer: S) -> Result<S::Ok, S::Error> {
    // The bytes may be a key.
    serializer.serialize_str(&Zeroizing::new(STANDARD.encode(bytes)))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>, T: From<Vec<u8>>>(deserializer: D) -> Result<T, D::Error> {
    let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
    STANDARD.decode(text.as_bytes()).map(T::from).map_err(D::Error::custom)
}
