//! The classic text format (<https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>), for readers that know
//! no OpenMetrics. The metrics library writes OpenMetrics alone; the two differ in comments.

pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The same figures.
pub fn of(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = None;
    let mut say = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    for line in open_metrics.lines() {
        if let Some(about) = line.strip_prefix("# HELP ") {
            help = about.split_once(' ');
        } else if let Some(about) = line.strip_prefix("# TYPE ") {
            let (name, kind) = about.split_once(' ').unwrap_or((about, "unknown"));
            // What is described is the series here, and the family there.
            let (end, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                "stateset" => ("", "gauge"),
                "unknown" => ("", "untyped"),
                _ => ("", kind),
            };
            if let Some((_, help)) = help.take() {
                say(&format!("# HELP {name}{end} {help}"));
            }
            say(&format!("# TYPE {name}{end} {kind}"));
        } else if !line.starts_with('#') {
            say(line);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_describe_the_series() {
        let open_metrics = "# HELP a Count of a.\n# TYPE a counter\na_total{q=\"x # y\"} 1\n\
                            # HELP b_seconds Time.\n# TYPE b_seconds histogram\n# UNIT b_seconds seconds\n\
                            b_seconds_sum 0.5\nb_seconds_count 1\nb_seconds_bucket{le=\"+Inf\"} 1\n\
                            # HELP c Build.\n# TYPE c info\nc_info{v=\"1\"} 1\n# TYPE d unknown\nd 2\n# EOF\n";
        let classic = "# HELP a_total Count of a.\n# TYPE a_total counter\na_total{q=\"x # y\"} 1\n\
                       # HELP b_seconds Time.\n# TYPE b_seconds histogram\n\
                       b_seconds_sum 0.5\nb_seconds_count 1\nb_seconds_bucket{le=\"+Inf\"} 1\n\
                       # HELP c_info Build.\n# TYPE c_info gauge\nc_info{v=\"1\"} 1\n# TYPE d untyped\nd 2\n";
        assert_eq!(of(open_metrics), classic);
    }
}
