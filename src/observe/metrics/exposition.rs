//! Families made at a scrape, of values that nobody counts along.

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

/// Families in the order they were added.
#[derive(Default)]
pub struct Families(Vec<MetricFamily>);

/// Names and values of labels.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

impl Families {
    /// Adds a family of gauges, if it has any.
    pub fn gauge<'a>(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels<'a>, f64)>) {
        self.add(name, help, MetricType::GAUGE, values, |metric, value| {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        });
    }

    /// Adds a family of counters, if it has any.
    pub fn counter<'a>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels<'a>, f64)>,
    ) {
        self.add(name, help, MetricType::COUNTER, values, |metric, value| {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        });
    }

    /// What was added.
    pub fn into_inner(self) -> Vec<MetricFamily> {
        self.0
    }

    fn add<'a>(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        values: impl IntoIterator<Item = (Labels<'a>, f64)>,
        set: impl Fn(&mut Metric, f64),
    ) {
        let metrics: Vec<Metric> = values
            .into_iter()
            .map(|(labels, value)| {
                let mut metric = Metric::from_label(labels.iter().map(label).collect());
                set(&mut metric, value);
                metric
            })
            .collect();
        if metrics.is_empty() {
            return;
        }
        let mut family = MetricFamily::default();
        family.set_name(name.into());
        family.set_help(help.into());
        family.set_field_type(kind);
        family.set_metric(metrics);
        self.0.push(family);
    }
}

fn label((name, value): &(&str, &str)) -> LabelPair {
    let mut label = LabelPair::default();
    label.set_name((*name).into());
    label.set_value((*value).into());
    label
}
