//! From what the configuration says to what the engine and the zone want.

use crate::conf::Settings;
use crate::zone;
use amesh_shm::Options;
use amesh_xds::engine::Config;

/// How a zone is laid out: as its size says.
pub fn zone_options() -> Options {
    Options::default()
}

/// What the engine is to do.
///
/// # Errors
/// What makes no sense, with the way out.
pub fn engine_config(s: &Settings) -> Result<Config, String> {
    s.mesh.config(zone::layout_hash()).map_err(|e| e.to_string())
}
