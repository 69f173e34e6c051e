(() => {
  'use strict';
  const find = id => document.getElementById(id);
  const filter = find('filter'), pause = find('pause'), live = find('live');
  let paused = false, timer = 0, failures = 0, last = Date.now();
  document.documentElement.classList.add('on');

  // A link may carry a filter: /debug/quic#n4.
  try { filter.value = decodeURIComponent(location.hash.slice(1)); } catch { filter.value = ''; }

  // Rows whose text has every word of the filter.
  const apply = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of document.querySelectorAll('tr[data-row]')) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every(word => text.includes(word));
    }
  };

  // Whoever selects something to copy it keeps it.
  const isSelecting = part => {
    const selection = getSelection();
    return selection !== null && !selection.isCollapsed && selection.containsNode(part, true);
  };

  const take = html => {
    const fresh = new DOMParser().parseFromString(html, 'text/html');
    for (const part of fresh.querySelectorAll('[data-part]')) {
      const old = find(part.id);
      if (old === null || old.innerHTML === part.innerHTML || isSelecting(old)) continue;
      const places = [...old.querySelectorAll('.scroll')].map(box => box.scrollLeft);
      old.replaceWith(part);
      part.querySelectorAll('.scroll').forEach((box, i) => { box.scrollLeft = places[i] || 0; });
    }
    apply();
  };

  const say = (text, isBad) => {
    live.textContent = text;
    live.classList.toggle('bad', isBad);
  };

  const refresh = async () => {
    timer = 0;
    if (paused || document.hidden) return;
    try {
      const answer = await fetch('/debug/quic?part', { cache: 'no-store', signal: AbortSignal.timeout(5000) });
      if (!answer.ok) throw new Error(answer.status);
      take(await answer.text());
      failures = 0;
      last = Date.now();
      say('live', false);
    } catch {
      failures += 1;
      say('no answer for ' + Math.round((Date.now() - last) / 1000) + ' s', true);
    }
    plan(failures > 3 ? 3000 : 1000);
  };

  const plan = delay => {
    if (timer === 0 && !paused && !document.hidden) timer = setTimeout(refresh, delay);
  };

  pause.addEventListener('click', () => {
    paused = !paused;
    pause.textContent = paused ? 'Go on' : 'Pause';
    pause.setAttribute('aria-pressed', String(paused));
    say(paused ? 'paused' : 'live', false);
    clearTimeout(timer);
    timer = 0;
    plan(0);
  });
  filter.addEventListener('input', apply);
  document.addEventListener('visibilitychange', () => plan(0));
  document.addEventListener('keydown', event => {
    if (event.key === '/' && document.activeElement !== filter) {
      event.preventDefault();
      filter.focus();
    }
  });
  apply();
  say('live', false);
  plan(1000);
})();
