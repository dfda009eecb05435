//! Monitoring stations.

use sheave_bgp::BmpStationStatus;

use super::exposition::Families;
use super::snapshot::{float, number};

/// Adds the families of all stations.
pub fn add_to(stations: &[BmpStationStatus], families: &mut Families) {
    let named: Vec<_> = stations.iter().map(|station| (station.address.to_string(), station)).collect();
    let labels: Vec<_> =
        named.iter().map(|(address, station)| ([("station", address.as_str())], *station)).collect();
    for (name, help, value) in [
        (
            "sheave_bmp_station_up",
            "Whether a BMP station is connected",
            (|station| f64::from(station.connected.is_some())) as fn(&BmpStationStatus) -> f64,
        ),
        ("sheave_bmp_queued_bytes", "Bytes that wait for a BMP station", |station| number(station.queued)),
    ] {
        families.gauge(name, help, labels.iter().map(|(labels, station)| (&labels[..], value(station))));
    }
    for (name, help, value) in [
        (
            "sheave_bmp_connections_total",
            "How often a BMP station was connected",
            (|station| float(station.counters.connections)) as fn(&BmpStationStatus) -> f64,
        ),
        (
            "sheave_bmp_cut_off_total",
            "How often a BMP station was cut off because it did not keep up",
            |station| float(station.counters.cut_off),
        ),
        ("sheave_bmp_sent_bytes_total", "Bytes sent to a BMP station", |station| {
            float(station.counters.bytes_sent)
        }),
    ] {
        families.counter(name, help, labels.iter().map(|(labels, station)| (&labels[..], value(station))));
    }
}
