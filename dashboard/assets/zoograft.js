/* What the browser does by itself: state in the address, themes, downloads, links, and the watch over the connection. */
(function () {
  "use strict";

  // --- number formats of grids; percent exists only where people read -----------------------------------------------
  var missing = "–";
  function given(value) { return value !== null && value !== undefined && !Number.isNaN(value); }
  var formats = {
    zgPercent: function (value) { return given(value) ? (100 * value).toFixed(2) + " %" : missing; },
    zgPoints: function (value) {
      return given(value) ? ((value > 0 ? "+" : "") + (100 * value).toFixed(2) + " pp").replace("-", "−") : missing;
    },
    zgFixed: function (value) { return given(value) ? value.toFixed(3).replace("-", "−") : missing; },
    zgWhole: function (value) { return given(value) ? value.toLocaleString("en") : missing; },
    zgPValue: function (value) {
      if (!given(value)) { return missing; }
      return value < 1e-300 ? "≈ 0" : value >= 0.001 ? value.toFixed(3) : value.toExponential(1);
    },
    zgParams: function (value) {
      if (!given(value)) { return missing; }
      var units = [[1e9, " G"], [1e6, " M"], [1e3, " k"]];
      for (var i = 0; i < units.length; i++) {
        if (value >= units[i][0]) { return String(Number((value / units[i][0]).toPrecision(3))) + units[i][1]; }
      }
      return String(value);
    },
    zgMoment: function (value) { return given(value) ? value.replace("T", " ").slice(0, 19) : missing; },
    zgDuration: function (value) {
      if (!given(value)) { return missing; }
      var s = Math.round(value);
      if (s < 60) { return s + " s"; }
      var m = Math.floor(s / 60);
      return m < 60 ? m + " min " + (s % 60) + " s" : Math.floor(m / 60) + " h " + (m % 60) + " min";
    },
    zgTheme: function (quartz) {
      var shared = { fontFamily: "inherit", fontSize: 13, headerFontSize: 13, spacing: 6, cellHorizontalPadding: 10, wrapperBorderRadius: 8 };
      function mode(own) { return Object.assign({}, shared, own); }
      return quartz
        .withParams(mode({ backgroundColor: "#FFFFFF", foregroundColor: "#1B1F24", accentColor: "#0068A3",
          headerBackgroundColor: "#F6F7F9", borderColor: "#D5D9E0", browserColorScheme: "light" }), "light")
        .withParams(mode({ backgroundColor: "#1E2227", foregroundColor: "#E8EAED", accentColor: "#56B4E9",
          headerBackgroundColor: "#262B32", borderColor: "#3C434D", browserColorScheme: "dark" }), "dark");
    }
  };
  var gridFunctions = (window.dashAgGridFunctions = window.dashAgGridFunctions || {});
  Object.assign(gridFunctions, formats);

  // --- cells ----------------------------------------------------------------------------------------------------------
  var cells = (window.dashAgGridComponentFunctions = window.dashAgGridComponentFunctions || {});
  function el() { return window.React.createElement.apply(null, arguments); }
  cells.ZgLink = function (props) {
    if (!given(props.value)) { return el("span", { className: "cell-loading" }, props.data ? missing : "…"); }
    var href = props.data && props.data[(props.colDef.field || "") + "_href"];
    return href ? el("a", { href: href, className: "cell-link" }, props.value) : el("span", null, props.value);
  };
  cells.ZgFamily = function (props) {
    if (!given(props.value)) { return null; }
    return el("span", { className: "family family-" + props.value }, props.data.family_label || props.value);
  };
  cells.ZgState = function (props) {
    if (!given(props.value)) { return null; }
    return el("span", { className: "state state-" + props.value }, props.value);
  };
  cells.ZgProgress = function (props) {
    var row = props.data;
    if (!row || !row.total) { return el("span", null, missing); }
    var share = Math.min(1, row.step / row.total);
    return el("span", { className: "cell-progress", title: row.step + " of " + row.total },
      el("span", { className: "bar" }, el("span", { style: { width: (100 * share).toFixed(1) + "%" } })),
      (100 * share).toFixed(0) + " %");
  };

  // --- links inside the dashboard do not load the page again ----------------------------------------------------------
  function go(href) {
    window.history.pushState({}, "", href);
    window.dispatchEvent(new CustomEvent("_dashprivate_pushstate"));
    window.scrollTo(0, 0);
  }
  document.addEventListener("click", function (event) {
    var button = event.target.closest && event.target.closest("[data-download]");
    if (button) { download(button); return; }
    var anchor = event.target.closest && event.target.closest("a[href]");
    if (!anchor || event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey) { return; }
    var href = anchor.getAttribute("href");
    if (href.charAt(0) !== "/" || href.indexOf("/api/") === 0 || anchor.target || anchor.hasAttribute("download")) { return; }
    event.preventDefault();
    go(href);
  });

  // --- downloads -------------------------------------------------------------------------------------------------------
  function download(button) {
    var kind = button.dataset.download;
    if (kind === "csv") {
      var query = window.location.search.replace(/^\?/, "");
      window.location.assign("/download/" + encodeURIComponent(button.dataset.table) + ".csv?path=" +
        encodeURIComponent(window.location.pathname) + (query ? "&" + query : ""));
      return;
    }
    var plot = document.querySelector("#" + CSS.escape(button.dataset.graph) + " .js-plotly-plot");
    if (plot && window.Plotly) {
      window.Plotly.downloadImage(plot, { format: kind, filename: "zoograft-" + button.dataset.table,
        width: Math.max(900, plot.clientWidth), height: plot.clientHeight, scale: kind === "png" ? 2 : 1 });
    }
  }

  // --- themes -----------------------------------------------------------------------------------------------------------
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  function resolved(choice) { return choice === "dark" || (choice !== "light" && dark.matches) ? "dark" : "light"; }
  function apply(scheme) {
    document.documentElement.setAttribute("data-mantine-color-scheme", scheme);
    document.documentElement.style.colorScheme = scheme;
    if (document.body) { document.body.dataset.agThemeMode = scheme; }
  }
  function stored() { try { return window.localStorage.getItem("zoograft-theme") || "system"; } catch (_) { return "system"; } }
  apply(resolved(stored()));
  document.addEventListener("DOMContentLoaded", function () { apply(resolved(stored())); });
  dark.addEventListener("change", function () {
    var scheme = resolved(stored());
    apply(scheme);
    if (window.dash_clientside && window.dash_clientside.set_props) {
      window.dash_clientside.set_props("scheme", { data: scheme });
    }
  });

  // --- the connection ---------------------------------------------------------------------------------------------------
  var lost = false;
  function banner(text) {
    var box = document.getElementById("connection");
    if (box) { box.textContent = text; box.hidden = !text; }
  }
  function watch() {
    original("/healthz", { cache: "no-store" }).then(function (answer) {
      if (!answer.ok) { throw new Error("not well"); }
      lost = false;
      banner("");
      if (window.dash_clientside && window.dash_clientside.set_props) {
        window.dash_clientside.set_props("again", { data: Date.now() });
      }
    }).catch(function () { window.setTimeout(watch, 2000); });
  }
  var original = window.fetch.bind(window);
  window.fetch = function (input, options) {
    return original(input, options).then(function (answer) {
      if (answer.status === 401 && String(answer.url).indexOf("_dash-") >= 0) { window.location.reload(); }
      return answer;
    }, function (error) {
      var url = String(input && input.url || input);
      if (!lost && url.indexOf("_dash-") >= 0 && !(error && error.name === "AbortError")) {
        lost = true;
        banner("The connection to the server is lost. This page goes on by itself when it is back.");
        window.setTimeout(watch, 1000);
      }
      throw error;
    });
  };

  // --- callbacks that need no server --------------------------------------------------------------------------------------
  var none = function () { return window.dash_clientside.no_update; };
  function asText(value) {
    if (value === null || value === undefined) { return ""; }
    return Array.isArray(value) ? value.join(",") : String(value);
  }
  window.dash_clientside = window.dash_clientside || {};
  window.dash_clientside.zoograft = {
    // Controls → address. `written` tells the router that this change is the page's own.
    write: function (values, search) {
      var triggered = window.dash_clientside.callback_context.triggered;
      if (!triggered.length) { return [none(), none()]; }
      var inputs = window.dash_clientside.callback_context.inputs_list[0];
      var query = new URLSearchParams(search || "");
      var before = query.toString();
      inputs.forEach(function (input) {
        var value = asText(input.value).trim();
        if (value === "" || value === input.id.default) { query.delete(input.id.name); } else { query.set(input.id.name, value); }
      });
      var after = query.toString();
      if (after === before) { return [none(), none()]; }
      // Another selection is another picture: what was zoomed into is left.
      query.delete("x"); query.delete("y"); query.delete("after");
      after = query.toString();
      var next = after ? "?" + after : "";
      return [next, next];
    },
    zoom: function (relayout, search) {
      if (!relayout) { return [none(), none()]; }
      var query = new URLSearchParams(search || "");
      var before = query.toString();
      if (relayout["xaxis.autorange"] || relayout["yaxis.autorange"]) { query.delete("x"); query.delete("y"); }
      ["x", "y"].forEach(function (axis) {
        var low = relayout[axis + "axis.range[0]"], high = relayout[axis + "axis.range[1]"];
        if (typeof low === "number" && typeof high === "number" && low < high) {
          query.set(axis, low.toPrecision(5) + "," + high.toPrecision(5));
        }
      });
      var after = query.toString();
      if (after === before) { return [none(), none()]; }
      return ["?" + after, "?" + after];
    },
    theme: function (choice) {
      try { window.localStorage.setItem("zoograft-theme", choice); } catch (_) { /* private windows forget */ }
      var scheme = resolved(choice);
      apply(scheme);
      return scheme;
    },
    theme_choice: function () { return stored(); },
    copy: function (clicks) {
      if (!clicks) { return none(); }
      var text = window.location.href;
      function fallback() {
        var area = document.createElement("textarea");
        area.value = text; document.body.appendChild(area); area.select();
        try { document.execCommand("copy"); } finally { area.remove(); }
      }
      if (navigator.clipboard && window.isSecureContext) { navigator.clipboard.writeText(text).catch(fallback); } else { fallback(); }
      window.setTimeout(function () { window.dash_clientside.set_props("copied", { children: "" }); }, 2500);
      return "Link copied";
    },
    follow: function (click) {
      if (click && click.points && click.points.length) {
        var target = click.points[0].customdata;
        var href = Array.isArray(target) ? target[target.length - 1] : target;
        if (typeof href === "string" && href.charAt(0) === "/") { go(href); }
      }
      return none();
    },
    toggle: function (clicks, opened) { return clicks ? !opened : opened; },
    navbar: function (opened, _path, navbar) {
      return Object.assign({}, navbar, { collapsed: { mobile: !opened } });
    },
    close: function (_path) { return false; }
  };
})();
